"""Train or evaluate one run of a comparison in this process, and measure its cost."""

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

from ..engine import Job, JobTrainer, evaluate, overrides, setup_job
from ..engine.resuming import NoWholeCheckpointError
from ..engine.run_folder import remove_run
from ..errors import UserError
from ..utils.atomic_files import open_atomic
from ..utils.json_files import write_json
from .replay import ReproducibleLoader

logger = logging.getLogger(__name__)


def train_run(folder: str, imports: Sequence[str] = ()) -> None:
    """Train and evaluate the ``config.yaml`` of a folder, or resume from its last checkpoint.

    Write ``predictions.json.gz``, the predictions for the test set, and last ``result.json``:
    metrics, cost per iteration, a digest of the training images, versions and device.

    Args:
        folder: the folder of the run.
        imports: modules that were imported to register components.

    Raises:
        UserError: the config is not valid.
    """
    job = _set_up(folder, imports, eval_only=False)
    if len(job.stages()) > 1:
        decoupled = job.KEYS["decoupled_trained"].rpartition(".")[0]
        raise UserError(
            f"A comparison trains one stage, but {decoupled} sets a second one: set its number of "
            f"iterations to 0. To compare second stages, set {job.KEYS['weights']} to "
            f"model_final.pth of the first stage, and set {job.KEYS['trained']}, the parameters to "
            "reinitialize and the sampler directly."
        )
    trainer = ReproducibleTrainer(job)
    trainer.resume_or_load(resume=True)
    trainer.train()
    costs = trainer.costs.summary() | {"image_digest": trainer.job_loader.digest}
    _write_result(job, trainer.metrics(), {"iterations": job.max_iter, **costs})


def evaluate_run(folder: str, imports: Sequence[str] = ()) -> None:
    """Evaluate the weights in the ``config.yaml`` of a folder; write files as :func:`train_run`.

    Args:
        folder: the folder of the run.
        imports: modules that were imported to register components.

    Raises:
        UserError: the config or the file of the weights is not valid.
    """
    job = _set_up(folder, imports, eval_only=True)
    metrics = flatten_results_dict(evaluate(job))
    _write_result(job, metrics, {"seconds_per_iteration": None, "peak_memory_mb": None})


def _set_up(folder: str, imports: Sequence[str], eval_only: bool) -> Job:
    config_file = os.path.join(folder, "config.yaml")
    return setup_job(
        Namespace(
            config_file=config_file,
            opts=overrides(config_file, {"output_dir": folder}),
            imports=imports,
            eval_only=eval_only,
            resume=not eval_only,
        )
    )


def _write_result(job: Job, metrics: dict[str, float], costs: dict) -> None:
    _compress(
        os.path.join(job.output_dir, "inference", "lvis_instances_results.json"),
        os.path.join(job.output_dir, "predictions.json.gz"),
    )
    result = {
        "metrics": {name: v if np.isfinite(v) else None for name, v in metrics.items()},
        **costs,
        "versions": _versions(job.device),
    }
    write_json(result, os.path.join(job.output_dir, "result.json"))


class CostMeter(HookBase):
    """Measures the time and the peak memory of training iterations; saved in checkpoints.

    Data loading, evaluation and other hooks are not included. The memory is the peak allocated on
    the GPU, or on the CPU the peak of the process (except on Linux, evaluation so far included).
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
        data_time, _ = get_event_storage().latest()["data_time"]
        self._seconds.append(elapsed - data_time)
        self._bytes = max(self._bytes, memory)

    def state_dict(self) -> dict:
        return {"seconds": list(self._seconds), "bytes": self._bytes}

    def load_state_dict(self, state: dict) -> None:
        self._seconds, self._bytes = list(state["seconds"]), state["bytes"]

    def summary(self) -> dict[str, float]:
        """Return the median time of an iteration and the peak memory in MB (10^6 bytes)."""
        return {
            "seconds_per_iteration": float(np.median(self._seconds)),
            "peak_memory_mb": self._bytes / 1e6,
        }


class ReproducibleTrainer(JobTrainer):
    """A trainer whose training images depend on the seed only, also when it resumes.

    Attributes:
        costs: the cost of its iterations.
    """

    reuses_results = False  # they lack NaN, and the predictions may be gone

    def build_hooks(self) -> list[HookBase]:
        self.costs = CostMeter(self._device)
        return [self.costs, *super().build_hooks()]  # first: directly around the step

    def resume_or_load(self, resume: bool = True) -> None:
        try:
            super().resume_or_load(resume)
        except NoWholeCheckpointError as error:
            logger.warning("%s The run starts anew.", error)
            remove_run(self.job.output_dir)
            super().resume_or_load(resume=False)

    def _fast_forward(self) -> None:
        self.job_loader.skip = self.start_iter

    @property
    def job_loader(self) -> ReproducibleLoader:
        return self._trainer.data_loader

    def before_step(self) -> None:
        self._finished_digest = self.job_loader.digest
        super().before_step()

    def undo_step(self) -> None:
        super().undo_step()
        self.job_loader.digest = self._finished_digest

    def state_dict(self) -> dict:
        return {**super().state_dict(), "image_digest": self.job_loader.digest}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.job_loader.digest = state["image_digest"]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the last evaluation, e.g. "bbox/AP"."""
        return flatten_results_dict(self._last_eval_results)

    def build_job_loader(self) -> ReproducibleLoader:
        return ReproducibleLoader(super().build_job_loader, self.job.seed)


def _reset_peak_memory() -> None:
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak_memory() -> int:
    """Return bytes; from getrusage only without /proc, as it includes the parent's memory."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _compress(source: str, target: str) -> None:
    with open(source, "rb") as file, open_atomic(target, "wb") as output:
        with gzip.open(output, "wb", 6) as compressed:
            shutil.copyfileobj(file, compressed)
    os.remove(source)


def _code_digest() -> str:
    """Return a hash of the package's files, as a changed checkout keeps its version."""
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
