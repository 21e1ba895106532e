"""Find and load the newest state of a training that is whole."""

import logging
import os

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..checkpoint import load_checkpoint
from ..errors import UserError
from .checkpointer import StrictCheckpointer
from .run_folder import LAST, resume_candidates

logger = logging.getLogger(__name__)


class NoWholeCheckpointError(UserError):
    """All checkpoints of a training are damaged."""


def load_last(checkpointer: StrictCheckpointer, key: str) -> tuple[str, dict]:
    """Load the newest whole checkpoint of a training, see :func:`resume_candidates`.

    Damaged checkpoints and those with NaN or infinite weights are passed over, with a warning.

    Args:
        checkpointer: of the training.
        key: config key of its folder, for messages.

    Returns:
        The name of the file, "" if the folder has no checkpoint, and what the checkpointer did not
        use of its contents.

    Raises:
        NoWholeCheckpointError: no checkpoint is whole.
        UserError: the one to load does not fit the model, or the processes
            see different ones.
    """
    folder = checkpointer.save_dir
    names = resume_candidates(folder)
    if len(set(comm.all_gather(tuple(names)))) > 1:
        raise UserError(
            f"The machines see different last checkpoints in {folder}: set {key} to a folder that "
            "they share, to use --resume."
        )
    faults = []
    for name in names:
        path = os.path.join(folder, name)
        fault = ""
        try:
            checkpointer.preloaded = _load_whole(checkpointer, path)
        except UserError as error:
            fault = str(error)
        fault = next(filter(None, comm.all_gather(fault)), "")  # all processes load the same one
        if not fault:
            for passed_over in faults:
                logger.warning("%s The training continues from %s instead.", passed_over, path)
            return name, checkpointer.load(path)
        checkpointer.preloaded = None
        faults.append(fault)
    if faults:
        raise NoWholeCheckpointError(
            f"{' '.join(faults)} {folder} has no older checkpoint to continue from: give "
            f"--overwrite instead of --resume to start over."
        )
    return "", {}


def _load_whole(checkpointer: StrictCheckpointer, path: str) -> dict:
    if not PathManager.isfile(path):
        last = os.path.join(checkpointer.save_dir, LAST)
        raise UserError(f"{last} names {path}, which does not exist.")
    checkpoint = load_checkpoint(PathManager.get_local_path(path))
    if not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"{path} has no weights of a model.")
    if found := checkpointer.nonfinite_weights(checkpoint):
        raise UserError(f"{path} has NaN or infinite weights, e.g. {found[0]}.")
    return checkpoint
