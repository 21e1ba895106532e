"""Train the runs of a comparison, each in its own process."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import torch
from tqdm import tqdm

from ..utils.folder_lock import is_locked
from ..utils.progress import Progress
from .plan import Plan, Run

logger = logging.getLogger(__name__)

_TAIL = 15  # output lines of a failed run to show
_PERIOD = 0.5  # seconds between two polls of the processes


def run_all(plan: Plan, jobs: int = 1) -> list[Run]:
    """Train the runs that are not done yet; a failed run does not stop the others.

    A run that another process still trains, e.g. one of a killed comparison, waits for its end. A
    run that evaluates the model of another one waits for it, and fails with it.

    On SIGINT and SIGTERM each running process saves a checkpoint, from which the next call resumes.

    Args:
        plan: a checked plan.
        jobs: number of runs at the same time; they are spread over the GPUs.

    Returns:
        The runs that failed.
    """
    waiting = [run for run in plan.runs if not run.is_done]
    waited_for: set[str] = set()
    running: list[_Process] = []
    failed: list[Run] = []
    previous = signal.signal(signal.SIGTERM, _interrupt)
    iterations = sum(run.num_iterations for run in waiting)
    try:
        with Progress("Training", iterations, "iterations") as progress:
            while waiting or running:
                free = [slot for slot in range(jobs) if slot not in {p.slot for p in running}]
                for run in list(waiting):
                    if run.is_done:  # by the process that it waited for
                        waiting.remove(run)
                    elif is_locked(run.folder):
                        if run.folder not in waited_for:
                            logger.info("Waiting for another process in %s.", run.folder)
                            waited_for.add(run.folder)
                    elif run.trained_by in failed:
                        waiting.remove(run)
                        failed.append(run)
                    elif free and (run.trained_by is None or run.trained_by.is_done):
                        waiting.remove(run)
                        running.append(_Process(run, free.pop(0), jobs))
                for process in list(running):
                    ended = process.popen.poll() is not None
                    process.advance(progress, ended)
                    if ended:
                        running.remove(process)
                        failed += process.finish()
                    else:
                        progress.rename(f"Training {process.name}")
                time.sleep(_PERIOD)
    except KeyboardInterrupt:
        logger.warning(
            "Stopping: running trainings save a checkpoint. Run the same command to resume."
        )
        raise
    finally:
        for process in running:
            process.popen.terminate()
        for process in running:
            process.popen.wait()
        signal.signal(signal.SIGTERM, previous)
    return failed


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


class _Process:
    """The process of a run, in its own session: only :func:`run_all` passes Ctrl-C on to it."""

    def __init__(self, run: Run, slot: int, jobs: int):
        self.run, self.slot = run, slot
        self.name = f"{run.row}, seed {run.seed}"
        self._output = os.path.join(run.folder, "output.txt")
        self._seen = 0
        os.makedirs(run.folder, exist_ok=True)
        if not os.path.isfile(run.config_file):
            run.job.save_config()
        flags = ["--eval-only"] if run.trained_by else []
        with open(self._output, "ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "apa_det.experiments", *flags, run.folder, *run.job.imports],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(slot, jobs),
                start_new_session=True,
            )

    def advance(self, progress: Progress, ended: bool) -> None:
        """Update the progress; the process logs its iteration every 20 iterations."""
        total = self.run.num_iterations
        now = total if ended else min(_last_iteration(self.run.folder), total)
        progress.update(max(0, now - self._seen))
        self._seen = max(self._seen, now)

    def finish(self) -> list[Run]:
        """Return the run in a list if it failed; print the end of its output."""
        if self.run.is_done:
            return []
        with open(self._output, encoding="utf-8", errors="replace") as file:
            tail = file.readlines()[-_TAIL:]
        tqdm.write(  # above the progress bar
            f"{self.name} failed with exit code {self.popen.returncode}. The end of "
            f"{self._output}:\n  " + "  ".join(tail),
            file=sys.stderr,
        )
        return [self.run]


def _environment(slot: int, jobs: int) -> dict[str, str]:
    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % gpus]
    elif not gpus and jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // jobs)))
    return environment


def _last_iteration(folder: str) -> int:
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 65536))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return json.loads(line)["iteration"] + 1
        except (ValueError, KeyError):  # an incomplete line
            continue
    return 0
