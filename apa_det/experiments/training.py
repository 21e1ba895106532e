"""One run of a comparison, trained and evaluated in this process, with what it costs."""

import gzip
import hashlib
import logging
import os
import platform
import resource
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import get_event_storage

import apa_det

from ..engine import JobTrainer, overrides, setup_job
from ..errors import UserError
from ..utils.json_files import write_json
from .replay import ReproducibleLoader

__all__ = ["CostMeter", "ReproducibleTrainer", "train_run"]

logger = logging.getLogger(__name__)


def train_run(folder: str, imports: Sequence[str] = ()) -> None:
    """Train and evaluate what ``config.yaml`` in a folder says, or go on from its last checkpoint.

    ``result.json`` is written last: the metrics, what an iteration costs, a digest of the pictures
    that were seen, versions and device. ``predictions.json.gz`` holds the predictions for the test
    set.
    """
    config_file = os.path.join(folder, "config.yaml")
    opts = overrides(config_file, {"output_dir": folder})
    job = setup_job(
        Namespace(config_file=config_file, opts=opts, imports=imports, eval_only=False, resume=True)
    )
    if len(job.stages()) > 1:
        raise UserError(
            "A comparison trains in one stage: set SOLVER.DECOUPLED.MAX_ITER to 0, and name "
            "model_final.pth of the first stage as MODEL.WEIGHTS, with SOLVER.TRAINED, "
            "MODEL.REINITIALIZE and DATALOADER.SAMPLER_TRAIN, to compare second stages."
        )
    trainer = ReproducibleTrainer(job)
    trainer.resume_or_load(resume=True)
    trainer.train()
    _compress(
        os.path.join(folder, "inference", "lvis_instances_results.json"),
        os.path.join(folder, "predictions.json.gz"),
    )
    result = {
        "metrics": {n: v if np.isfinite(v) else None for n, v in trainer.metrics().items()},
        "iterations": job.max_iter,
        **trainer.costs.summary(),
        "pictures": trainer.pictures.digest,
        "versions": _versions(job.device),
    }
    write_json(result, os.path.join(folder, "result.json"))


class CostMeter(HookBase):
    """The time and the memory of training iterations, kept in checkpoints.

    Reading pictures, evaluation and other hooks are left out. The memory is the most that was
    allocated on the GPU; on a CPU it is the most that the process took (outside of Linux, up to
    then, evaluation included).
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds: list[float] = []
        self._bytes = 0

    def before_step(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_peak_memory()
        self._start = time.perf_counter()

    def after_step(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            memory = torch.cuda.max_memory_allocated(self._device)
        else:
            memory = _peak_memory()
        elapsed = time.perf_counter() - self._start
        reading, _ = get_event_storage().latest()["data_time"]
        self._seconds.append(elapsed - reading)
        self._bytes = max(self._bytes, memory)

    def state_dict(self) -> dict:
        return {"seconds": list(self._seconds), "bytes": self._bytes}

    def load_state_dict(self, state: dict) -> None:
        self._seconds, self._bytes = list(state["seconds"]), state["bytes"]

    def summary(self) -> dict[str, float]:
        """The median of the seconds of an iteration, and the most memory in MB (10^6 bytes)."""
        return {
            "seconds_per_iteration": float(np.median(self._seconds)),
            "peak_memory_mb": self._bytes / 1e6,
        }


class ReproducibleTrainer(JobTrainer):
    """The trainer, with pictures that depend on ``SEED`` alone, also after ``--resume``.

    Attributes:
        costs: what its iterations cost.
    """

    def build_hooks(self) -> list[HookBase]:
        self.costs = CostMeter(self._device)
        return [self.costs, *super().build_hooks()]  # next to the step

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self.pictures.skip = self.start_iter

    @property
    def pictures(self) -> ReproducibleLoader:
        return self._trainer.data_loader

    def state_dict(self) -> dict:
        return {**super().state_dict(), "pictures": self.pictures.digest}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.pictures.digest = state["pictures"]

    def metrics(self) -> dict[str, float]:
        """Those of the last evaluation, such as "bbox/AP"."""
        return flatten_results_dict(self._last_eval_results)

    def build_job_loader(self) -> ReproducibleLoader:
        return ReproducibleLoader(super().build_job_loader, self.job.seed)


def _reset_peak_memory() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_memory() -> int:
    """Bytes. Of getrusage only where there is no /proc: it starts from what the parent held."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _compress(source: str, target: str) -> None:
    with open(source, "rb") as plain, gzip.open(f"{target}.partial", "wb", 6) as packed:
        shutil.copyfileobj(plain, packed)
    os.replace(f"{target}.partial", target)
    os.remove(source)


def _code_digest() -> str:
    """Of the package's files: a checkout that changes keeps its version."""
    root = Path(apa_det.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _versions(device: str) -> dict[str, str]:
    cuda = device.startswith("cuda")
    return {
        "apa_det": f"{apa_det.__version__}, code {_code_digest()}",
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})",
        "threads": str(torch.get_num_threads()),
    }
