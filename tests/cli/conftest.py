import os
import subprocess
import sys
from pathlib import Path

import pytest

from apa_det.data import generate_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def start():
    """Starts Python with the checkout on its path, as a process of its own."""

    def popen(*command, path=(), cwd=ROOT) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
            },
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


@pytest.fixture(scope="session")
def run(start):
    """Runs Python to its end: (exit status, stdout, stderr)."""

    def wait(*command, **kwargs) -> tuple[int, str, str]:
        process = start(*command, **kwargs)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, out, err

    return wait


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The flags that make the quickstart tiny; the output folder is still to be given."""
    data = tmp_path_factory.mktemp("data")
    generate_dataset(data, num_train=4, num_val=2, num_classes=4, image_size=64)
    datasets = [[f"cli_{s}", f"{data}/{s}.json", f"{data}"] for s in ("train", "val")]
    return [
        *("--config-file", f"{ROOT}/configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml"),
        *("DATASETS.LVIS_FORMAT", str(datasets), "DATASETS.TRAIN", "('cli_train',)"),
        *("DATASETS.TEST", "('cli_val',)", "MODEL.ROI_HEADS.NUM_CLASSES", "4"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"),
        *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"),
        *("DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0"),
    ]
