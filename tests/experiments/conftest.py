import pytest
import yaml

from apa_det.data import generate_dataset

CONFIG = """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {{NAME: build_apa_resnet_fpn_backbone, FREEZE_AT: 0}}
  RESNETS:
    DEPTH: 18
    RES2_OUT_CHANNELS: 64
    OUT_FEATURES: [res2, res3, res4, res5]
    NORM: BN
  FPN: {{IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}}
  ANCHOR_GENERATOR: {{SIZES: [[8], [16], [32], [64], [128]]}}
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    PRE_NMS_TOPK_TRAIN: 50
    PRE_NMS_TOPK_TEST: 50
    POST_NMS_TOPK_TRAIN: 30
    POST_NMS_TOPK_TEST: 30
  ROI_HEADS:
    NAME: APAROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
    NUM_CLASSES: 4
    BATCH_SIZE_PER_IMAGE: 16
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD: {{NAME: APAFastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
DATASETS:
  LVIS_FORMAT:
    - [comparison_train, {data}/train.json, {data}]
    - [comparison_val, {data}/val.json, {data}]
  TRAIN: [comparison_train]
  TEST: [comparison_val]
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.01, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0}}
TEST: {{DETECTIONS_PER_IMAGE: 20}}
VERSION: 2
"""


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    """Of a tiny Faster R-CNN, with 16 training and 6 test pictures of 4 classes."""
    folder = tmp_path_factory.mktemp("data")
    generate_dataset(folder, num_train=16, num_val=6, num_classes=4, image_size=64)
    path = folder / "base.yaml"
    path.write_text(CONFIG.format(data=folder))
    return path


@pytest.fixture(scope="session")
def describe(config_file, tmp_path_factory):
    """Writes a description of rows on the tiny config, in a new folder, and returns its path."""

    def write(*rows, **content):
        content = {"base": str(config_file), "seeds": [0], "rows": list(rows), **content}
        path = tmp_path_factory.mktemp("description") / "comparison.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


@pytest.fixture(autouse=True)
def every_test_with_fresh_loggers(fresh_loggers):
    pass
