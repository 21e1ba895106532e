"""The output folder of a training: whose it is, and what a stopped training left in it."""

import json
import logging
import os
import re
from collections.abc import Sequence

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..utils.atomic_files import writing
from ..utils.folder_lock import lock_folder, unlock_folder

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # the file that names the newest checkpoint
FINAL = "model_final.pth"
BEST = "model_best.pth"
EVALUATION_TIME = "evaluation_time"  # a scalar that each evaluation writes
METRICS = "metrics.json"
_PERIODIC = re.compile(r"model_(\d{7,})\.pth")


def periodic_checkpoints(folder: str) -> dict[int, str]:
    """Return the names of the periodic checkpoints in a folder by their iterations, ascending."""
    names = PathManager.ls(folder) if PathManager.isdir(folder) else []
    matches = filter(None, map(_PERIODIC.fullmatch, names))
    return dict(sorted((int(match[1]), match[0]) for match in matches))


def has_checkpoint(folder: str) -> bool:
    """Return whether a folder has a checkpoint to resume from."""
    return PathManager.isfile(os.path.join(folder, LAST))


def resume_candidates(folder: str) -> list[str]:
    """Return the names of the checkpoints to resume from, in the order in which to try them.

    First is the one that ``last_checkpoint`` names, then the older periodic ones follow. Newer ones
    are left out, so that editing ``last_checkpoint`` goes back to an earlier state.
    """
    if not has_checkpoint(folder):
        return []
    with PathManager.open(os.path.join(folder, LAST), "rb") as file:
        last = file.read(1000).decode(errors="replace").strip()
    match = _PERIODIC.fullmatch(last)
    older = [
        name
        for iteration, name in reversed(periodic_checkpoints(folder).items())
        if match is None or iteration < int(match[1])
    ]
    return [last, *older]


def claim_folder(*folders: str, key: str, resume: bool, overwrite: bool) -> None:
    """Lock a folder for a training, in the main process; all processes fail together.

    Args:
        folders: the output folders of the stages of the training. The first one is locked.
        key: its config key, for messages.
        resume: the folder may have checkpoints.
        overwrite: the folder may have checkpoints, which the caller deletes.

    Raises:
        UserError: another training runs in the folder, or it has checkpoints of another one.
    """
    error = None
    if comm.is_main_process():
        try:
            _claim(folders, key, may_have_checkpoints=resume or overwrite)
        except UserError as caught:
            error = caught
    error = comm.all_gather(error)[0]
    if error is not None:
        raise error


def _claim(folders: Sequence[str], key: str, *, may_have_checkpoints: bool) -> None:
    is_new = lock_folder(folders[0], key)
    found = [os.path.join(folder, name) for folder in folders for name in _checkpoints(folder)]
    if found and not may_have_checkpoints:
        if is_new:
            unlock_folder(folders[0])
        raise UserError(
            f"{key} is {folders[0]}, which has checkpoints of another training, e.g. {found[-1]}: "
            "give --resume to continue it, --overwrite to delete it and start over, or set "
            f"{key} to another folder."
        )


def release_folder(folder: str) -> None:
    """End the lock of :func:`claim_folder`."""
    unlock_folder(folder)


def _checkpoints(folder: str) -> list[str]:
    names = [LAST, *periodic_checkpoints(folder).values(), BEST, FINAL]
    return [name for name in names if PathManager.isfile(os.path.join(folder, name))]


def require_kept_weights(folders: Sequence[str], weights: str, keys: dict[str, str]) -> None:
    """Raise a UserError if the initial weights are a checkpoint that ``--overwrite`` deletes."""
    for folder in folders:
        for name in _checkpoints(folder):
            if os.path.realpath(weights) == os.path.realpath(os.path.join(folder, name)):
                raise UserError(
                    f"{keys['weights']} is {weights}, which --overwrite would delete: move it, or "
                    f"set {keys['output_dir']} to another folder."
                )


def remove_run(folder: str) -> None:
    """Delete the checkpoints and the metrics of an earlier training.

    ``last_checkpoint`` goes first: a training never resumes from a part of them.
    """
    with writing(folder):
        for name in _checkpoints(folder):
            PathManager.rm(os.path.join(folder, name))
    truncate_metrics(folder, 0)


def truncate_metrics(folder: str, iteration: int, *, keep_results: bool = True) -> None:
    """Cut ``metrics.json`` before the first line that a training from an iteration writes again.

    An incomplete line is cut too. The results after the iteration before are kept, unless
    ``keep_results`` is False.
    """
    path = os.path.join(folder, METRICS)
    if "://" in path or not os.path.isfile(path):
        return
    end = 0
    with writing(path):
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not _is_before(line, iteration, keep_results):
                    break
                end += len(line)
        if end < os.path.getsize(path):
            os.truncate(path, end)  # in place, as the writer has the file open


def _is_before(line: bytes, iteration: int, keep_results: bool) -> bool:
    scalars = parse_metrics(line)
    at = scalars.get("iteration", -1)
    is_result = at == iteration > 0 and "total_loss" not in scalars
    return at < iteration or (is_result and keep_results)


def recorded_results(folder: str, iteration: int) -> dict[str, dict]:
    """Return the results of ``metrics.json`` after the last iteration, nested; empty if none.

    Args:
        folder: the output folder.
        iteration: the number of iterations of the training.
    """
    results: dict[str, dict] = {}
    lines = _lines_of(folder, iteration)
    for name, value in (lines[-1] if lines and "total_loss" not in lines[-1] else {}).items():
        *groups, metric = name.split("/")
        if groups:
            node = results
            for group in groups:
                node = node.setdefault(group, {})
            node[metric] = value
    return results


def was_evaluated(folder: str, iteration: int) -> bool:
    """Return whether ``metrics.json`` has the results of the evaluation after an iteration."""
    return any(EVALUATION_TIME in line for line in _lines_of(folder, iteration))


def _lines_of(folder: str, iteration: int) -> list[dict]:
    path = os.path.join(folder, METRICS)
    if not PathManager.isfile(path):
        return []
    with PathManager.open(path, "rb") as file:
        return [line for line in map(parse_metrics, file) if line.get("iteration") == iteration]


def parse_metrics(line: bytes) -> dict:
    """Return the scalars in a line of ``metrics.json``; {} if it is incomplete."""
    try:
        scalars = json.loads(line)
    except ValueError:
        return {}
    return scalars if isinstance(scalars, dict) else {}
