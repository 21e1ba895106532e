from argparse import Namespace
from pathlib import Path

import pytest

from apa_det.data import generate_dataset
from apa_det.engine import evaluate, setup_job, train

QUICKSTART = Path(__file__).parents[2] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA"
CONFIG = """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  MASK_ON: True
  BACKBONE: {{NAME: build_apa_resnet_fpn_backbone, FREEZE_AT: 0}}
  APA: {{ACTIVATION: aglu, LOG_PERIOD: 2}}
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
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
    NUM_CLASSES: 4
    BATCH_SIZE_PER_IMAGE: 16
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD: {{NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}}
  ROI_MASK_HEAD: {{NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
DATASETS:
  LVIS_FORMAT:
    - [engine_train, {data}/train.json, {data}]
    - [engine_val, {data}/val.json, {data}]
  TRAIN: [engine_train]
  TEST: [engine_val]
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.01, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0}}
TEST: {{DETECTIONS_PER_IMAGE: 20}}
OUTPUT_DIR: {output}
SEED: 1
VERSION: 2
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """16 training and 6 test pictures of 4 classes; their folder."""
    folder = tmp_path_factory.mktemp("data")
    generate_dataset(folder, num_train=16, num_val=6, num_classes=4, image_size=64)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def arguments(data, output, tmp_path):
    """Makes the arguments of the command line, for a tiny Mask R-CNN with AGLU."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(data=data, output=output))

    def make(*opts, eval_only=False, resume=False, num_gpus=1):
        return Namespace(
            config_file=str(config),
            eval_only=eval_only,
            resume=resume,
            num_gpus=num_gpus,
            num_machines=1,
            machine_rank=0,
            dist_url="auto",
            opts=[str(opt) for opt in opts],
        )

    return make


@pytest.fixture(autouse=True)
def every_test_with_fresh_loggers(fresh_loggers):
    pass


@pytest.fixture
def overrides(data, output):
    """The quickstart on the fixture's pictures, in small."""
    datasets = [[f"lazy_{s}", f"{data}/{s}.json", f"{data}"] for s in ("train", "val")]
    return [
        f"train.output_dir={output}",
        "train.max_iter=2",
        "train.seed=1",
        "train.apa_log_period=2",
        f"dataloader.lvis_format={datasets}".replace("'", ""),
        "dataloader.train.dataset.names=lazy_train",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.test.dataset.names=lazy_val",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "model.roi_heads.num_classes=4",
        "model.roi_heads.box_predictor.test_topk_per_image=20",
        "model.proposal_generator.post_nms_topk=[30,30]",
    ]


@pytest.fixture
def lazy_arguments(overrides):
    """Makes the arguments of the command line, for the quickstart's LazyConfig."""

    def make(*opts, config_file=f"{QUICKSTART}.py", eval_only=False, resume=False):
        return Namespace(
            config_file=str(config_file),
            eval_only=eval_only,
            resume=resume,
            num_gpus=1,
            num_machines=1,
            machine_rank=0,
            dist_url="auto",
            opts=[*overrides, *map(str, opts)],
        )

    return make


@pytest.fixture
def train_net():
    """Trains or evaluates, as tools/train_net.py does in each process."""

    def main(args):
        return (evaluate if args.eval_only else train)(setup_job(args), resume=args.resume)

    return main
