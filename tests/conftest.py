"""Fixtures and helpers that the tests of several folders share."""

import json
import logging
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.logger import _cached_log_stream, setup_logger

from apa_det.data import generate_dataset
from apa_det.utils import folder_lock
from apa_det_cli import train_detector

ROOT = Path(__file__).parents[1]
CAN_EXPORT = hasattr(torch.compiler, "is_exporting")
needs_export = pytest.mark.skipif(not CAN_EXPORT, reason="export of a backbone needs torch >= 2.6")
TINY_CONFIG = """
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
  LVIS_FORMAT: {datasets}
  TRAIN: [tiny_train]
  TEST: [tiny_val]
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.01, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0}}
TEST: {{DETECTIONS_PER_IMAGE: 20}}
FIGURES: False
SEED: 1
VERSION: 2
"""


def tiny_datasets(folder) -> list[list[str]]:
    """Return the entries of ``DATASETS.LVIS_FORMAT`` for the folder of ``tiny_dataset``."""
    return [[f"tiny_{s}", f"{folder}/{s}.json", str(folder)] for s in ("train", "val")]


def training_flags(
    config_file,
    *opts,
    eval_only: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    num_gpus: int = 1,
) -> Namespace:
    """Parse the flags of ``apa-det train``."""
    flags = ["--config-file", str(config_file), "--num-gpus", str(num_gpus), "--dist-url", "auto"]
    flags += ["--eval-only"] * eval_only + ["--resume"] * resume
    flags += ["--overwrite"] * overwrite
    return train_detector.parser().parse_args([*flags, "--opts", *map(str, opts)])


def read_metrics(output: Path) -> list[dict]:
    """Read the lines of the ``metrics.json`` of an output folder."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def flat(results: dict) -> dict[str, float]:
    """Flatten results as in ``metrics.json``, without NaN."""
    return {name: value for name, value in flatten_results_dict(results).items() if value == value}


def require_path(path: Path) -> Path:
    """Skip the test if a file or folder of the real datasets does not exist."""
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """The folder of a generated dataset: 16 training and 6 test images of 4 classes."""
    folder = tmp_path_factory.mktemp("tiny_dataset")
    generate_dataset(folder, num_train=16, num_val=6, num_classes=4, image_size=64)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_dataset, tmp_path_factory) -> Path:
    """The yaml config of a tiny Mask R-CNN with AGLU on the tiny dataset."""
    path = tmp_path_factory.mktemp("tiny_config") / "tiny.yaml"
    path.write_text(TINY_CONFIG.format(datasets=tiny_datasets(tiny_dataset)))
    return path


@pytest.fixture(scope="session")
def quickstart(tiny_dataset) -> SimpleNamespace:
    """The quickstart's config files, and overrides to train it on the tiny dataset on the CPU."""
    config = ROOT / "configs/Quickstart/mask_rcnn_R_18_FPN_APA"
    datasets = tiny_datasets(tiny_dataset)
    opts = {
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": 4,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
        "DATASETS.LVIS_FORMAT": datasets,
        "DATASETS.TRAIN": ("tiny_train",),
        "DATASETS.TEST": ("tiny_val",),
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "TEST.DETECTIONS_PER_IMAGE": 20,
        "FIGURES": False,
        "SEED": 1,
    }
    lazy_opts = {
        "train.device": "cpu",
        "train.max_iter": 2,
        "train.seed": 1,
        "train.apa_log_period": 2,
        "train.figures": False,
        "dataloader.lvis_format": datasets,
        "dataloader.train.dataset.names": "tiny_train",
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.mapper.augmentations.0.short_edge_length": [64],
        "dataloader.test.dataset.names": "tiny_val",
        "dataloader.test.mapper.augmentations.0.short_edge_length": 64,
        "model.roi_heads.num_classes": 4,
        "model.roi_heads.box_predictor.test_topk_per_image": 20,
        "model.proposal_generator.post_nms_topk": [30, 30],
    }
    return SimpleNamespace(
        yaml=f"{config}.yaml",
        opts=[str(x) for item in opts.items() for x in item],
        lazy=f"{config}.py",
        lazy_opts=[f"{key}={value}" for key, value in lazy_opts.items()],
    )


@pytest.fixture(scope="session")
def tool():
    """Run a tool in this process: ``tool("demo", "--input", path)`` returns its exit status."""

    def run(name: str, *arguments) -> int:
        script = str(ROOT / f"tools/{name}.py")
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit) as exit_:
            monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
            runpy.run_path(script, run_name="__main__")
        return exit_.value.code

    return run


@pytest.fixture(autouse=True)
def fresh_loggers():
    """Remove the log handlers that a test has set up."""
    yield
    for name in ("apa_det", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    setup_logger.cache_clear()
    _cached_log_stream.cache_clear()  # by relative paths of other working folders
    logging.getLogger("apa_det.data.lvis_format").filters.clear()  # of hide_known_messages


@pytest.fixture(autouse=True)
def fresh_locks():
    """End the locks of output folders, which otherwise last as long as the process."""
    yield
    for path in list(folder_lock._held):
        folder_lock.unlock_folder(os.path.dirname(path))


@pytest.fixture
def forget_datasets():
    """Removes the datasets that the test registers."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets (LVIS, tinycoco, ...) named by APA_DET_TEST_DATA."""
    folder = os.environ.get("APA_DET_TEST_DATA")
    if not folder:
        pytest.skip("Set APA_DET_TEST_DATA to the folder of real datasets to run this test.")
    if not Path(folder).is_dir():
        pytest.skip(f"APA_DET_TEST_DATA names a missing folder: {folder}")
    return Path(folder)


@pytest.fixture(scope="session")
def lvis_val_100(real_data) -> Path:
    """100 images of LVIS v1 val."""
    return require_path(real_data / "lvis/lvis_val_100.json")


LOCKING = """
import sys
from apa_det.utils.folder_lock import lock_folder
lock_folder(sys.argv[1], "OUTPUT_DIR")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another(folder):
    """Lock a folder in another process, and return its id."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", LOCKING, str(folder)]
    other = subprocess.Popen(command, env=environment, **pipes)
    try:
        assert other.stdout.readline() == b"locked\n"
        yield other.pid
    finally:
        other.kill()
        other.communicate()
