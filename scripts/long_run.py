#!/usr/bin/env python
"""Train many small iterations with many evaluations in one process, and check that nothing grows.

After each evaluation the script counts live tensors, Python objects and open files, and reads the
resident memory. From a fifth of the training on, the counts must be constant, up to --slack objects
that caches of Python and torch add, and the memory must grow by less than 5 % per 1,000 iterations.

oneDNN, which runs torch's convolutions on a CPU, keeps compiled code for the last 1,024 shapes, and
each number of regions in an image is another shape. This cache is off here: over 2,000 iterations
it fills, and the memory grows by 270 MB.
"""

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"  # before torch is imported

import numpy as np
import torch
from detectron2.engine import HookBase
from tabulate import tabulate

from apa_det.data import generate_dataset
from apa_det.engine import Trainer, setup_job
from apa_det_cli import train_detector

CONFIG = Path(__file__).parents[1] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml"


class Meter(HookBase):
    """Counts what is alive after each evaluation."""

    def __init__(self, period: int):
        self._period = period
        self.rows: list[tuple[int, int, int, int, float]] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period:
            return
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(x), torch.Tensor) for x in objects)
        files = len(os.listdir("/proc/self/fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rows.append(
            (done, tensors, len(objects), files, pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--slack", type=int, default=2000, help="Python objects (2000)")
    args = parser.parse_args()
    period = args.iterations // args.evaluations
    meter = Meter(period)

    class MeteredTrainer(Trainer):
        def build_hooks(self) -> list[HookBase]:
            return [*super().build_hooks(), meter]

    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(folder, num_train=24, num_val=8, num_classes=4, image_size=64)
        sets = [[f"long_{s}", f"{folder}/{s}.json", folder] for s in ("train", "val")]
        opts = {
            "OUTPUT_DIR": f"{folder}/output",
            "MODEL.DEVICE": "cpu",
            "MODEL.ROI_HEADS.NUM_CLASSES": 4,
            "DATASETS.LVIS_FORMAT": sets,
            "DATASETS.TRAIN": ("long_train",),
            "DATASETS.TEST": ("long_val",),
            "DATALOADER.NUM_WORKERS": 1,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.MIN_SIZE_TEST": 64,
            "SOLVER.IMS_PER_BATCH": 1,
            "SOLVER.BASE_LR": 0.001,
            "SOLVER.MAX_ITER": args.iterations,
            "SOLVER.STEPS": (),
            "SOLVER.CHECKPOINT_PERIOD": period,
            "SOLVER.CHECKPOINTS_KEPT": 1,
            "TEST.EVAL_PERIOD": period,
            "TEST.BEST_METRIC": "bbox/AP",
        }
        pairs = [str(x) for item in opts.items() for x in item]
        flags = ["--config-file", str(CONFIG), "--opts", *pairs]
        job = setup_job(train_detector.parser().parse_args(flags))
        MeteredTrainer(job.config).train()
    names = ["iteration", "tensors", "objects", "open files", "memory (MB)"]
    print(tabulate(meter.rows[:: max(1, len(meter.rows) // 10)], names, floatfmt=".1f"))
    return 1 if any([*map(print_fault, faults(np.array(meter.rows), args.slack))]) else 0


def faults(rows: np.ndarray, slack: int) -> list[str]:
    """Return what has grown, from the rows of a :class:`Meter`."""
    rows = rows[len(rows) // 5 :]
    iterations, tensors, objects, files, memory = rows.T
    found = [
        f"{name} grew from {values[0]:.0f} to {values[-1]:.0f}"
        for name, values, allowed in (
            ("Live tensors", tensors, 0),
            ("Python objects", objects, slack),
            ("Open files", files, 0),
        )
        if values[-1] - values[0] > allowed
    ]
    growth = np.polyfit(iterations, memory, 1)[0] * 1000 / memory[0]
    print(f"Resident memory: {growth:+.2%} per 1,000 iterations.")
    return found + ([f"Memory grew by {growth:.1%} per 1,000 iterations"] if growth > 0.05 else [])


def print_fault(fault: str) -> bool:
    print(fault, file=sys.stderr)
    return True


if __name__ == "__main__":
    sys.exit(main())
