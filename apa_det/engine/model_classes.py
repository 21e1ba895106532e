"""The classes of a job's model: their names and their number."""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache

from detectron2.utils.logger import log_first_n
from torch import nn

from ..checkpoint import load_checkpoint, stored_class_names
from ..checkpoint.download import download_checkpoint
from ..data import ensure_metadata
from ..data.class_names import align_training_sets, dataset_class_names, map_classes
from ..errors import UserError
from ..evaluation.by_name import set_model_classes
from ..modeling.postprocessing import postprocessings
from .decoupled import last_stage
from .job import Job
from .run_folder import resume_candidates

logger = logging.getLogger(__name__)

_unloaded: dict[tuple, dict] = {}  # the checkpoint that was read last, by path and version


def name_classes(model: nn.Module, names: Sequence[str] | None) -> None:
    """Store the names of a model's classes with it; None: they are unknown."""
    set_model_classes(model, names)
    for processing in postprocessings(model):
        processing.set_class_names(names)


def choose_num_classes(job: Job, *, eval_only: bool, resume: bool = False) -> Job:
    """Return the job with the number of classes, if its config leaves it unset.

    It is that of the training set; with ``eval_only``, that of the checkpoint, if it has class
    names. Otherwise it is that of the first test set. It stays unset if none of them can be read.

    Args:
        job: the job; its datasets are registered.
        eval_only: the job loads a trained checkpoint.
        resume: it is the last one of the output folder, if there is one.
    """
    keys = job.unset_num_classes()
    if not keys:
        return job
    for source, names in _sources(job, eval_only=eval_only, resume=resume):
        if names:
            logger.info(
                "%s is not set: using %d, the number of classes of %s.",
                *(" and ".join(keys), len(names), source),
            )
            return job.with_num_classes(len(names))
    return job


def _sources(
    job: Job, *, eval_only: bool, resume: bool
) -> Iterator[tuple[str, Sequence[str] | None]]:
    if eval_only:
        path = _checkpoint_path(job, resume=resume)
        yield path, _stored_names(path)
    for name in (*job.train_datasets[:1], *job.test_datasets[:1]):
        yield f"the dataset {name}", _names_if_readable(name)


def check_classes(job: Job, *, eval_only: bool, resume: bool = False) -> list[str] | None:
    """Check the classes of a job's datasets and of its checkpoint, before the model is built.

    Training sets in LVIS format get the order of classes of the first one.

    Args:
        job: the job; its datasets are registered.
        eval_only: the job loads a trained checkpoint, and does not train.
        resume: as the ``--resume`` flag.

    Returns:
        The class names of the model; None if they are unknown.

    Raises:
        UserError: the model has another number of classes than its training set or checkpoint, the
            training sets have different classes, or a test set has classes that the model lacks.
    """
    for name in job.test_datasets:
        ensure_metadata(name)
    if eval_only:
        path = _checkpoint_path(job, resume=resume)
        names = model_class_names(job, _stored_names(path), path)
    else:
        names = align_training_sets(job.train_datasets)
        if names is not None:
            check_num_classes(job, job.train_datasets[:1])
    if names is None:
        check_num_classes(job, job.test_datasets)
    for name in job.test_datasets if names is not None else ():
        map_classes(name, names)
    return names


def check_num_classes(job: Job, dataset_names: Sequence[str]) -> None:
    """Raise a UserError for a dataset whose number of classes differs from the model's.

    Skips datasets without class names, and models with an unknown number of classes.
    """
    for name in dataset_names:
        names = dataset_class_names(name)
        if names is not None:
            _require_num_classes(job, len(names), f"The dataset {name}")


def _require_num_classes(job: Job, number: int, owner: str) -> None:
    known = job.num_classes()
    if known is not None and known[0] != number:
        raise UserError(
            f"{owner} has {number} classes, but {known[1]} is {known[0]}: set it to {number}."
        )


def model_class_names(job: Job, stored: Sequence[str] | None, path: str) -> list[str] | None:
    """Return the class names of a trained model.

    Args:
        job: the job.
        stored: the names in its checkpoint. None: those of the training set, if it can be read and
            has as many classes as the model.
        path: the checkpoint, for messages.

    Returns:
        The names; None if they are unknown.

    Raises:
        UserError: the checkpoint has class names for another number of classes.
    """
    if stored is not None:
        _require_num_classes(job, len(stored), path)
        return list(stored)
    names = _names_if_readable(job.train_datasets[0]) if job.train_datasets else None
    known = job.num_classes()
    if names is not None and (known is None or len(names) == known[0]):
        source = f"the training set {job.train_datasets[0]}"
    else:
        names, source = None, "each test set"
    if path:
        log_first_n(
            logging.WARNING,
            f"{path} has no class names: its classes are assumed to be those of {source}, in the "
            "same order.",
            key="message",
        )
    return names


def _names_if_readable(dataset_name: str) -> list[str] | None:
    try:
        return dataset_class_names(dataset_name)
    except (UserError, OSError):
        return None


def _checkpoint_path(job: Job, *, resume: bool) -> str:
    """Return the local path of the checkpoint that a job evaluates; "" if there is none."""
    if resume:
        folder = last_stage(job).output_dir
        for name in resume_candidates(folder)[:1]:
            return os.path.join(folder, name)
    path = job.weights.partition("?")[0]
    try:
        return download_checkpoint(path) if "://" in path else path
    except UserError:
        return ""


def _stored_names(path: str) -> list[str] | None:
    if not os.path.isfile(path):
        return None
    names = _read_stored_names(path, _version(path))
    return None if names is None else list(names)


def _version(path: str) -> tuple[int, int]:
    """Return what differs after a file was written again."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _read_stored_names(path: str, version: tuple[int, int]) -> list[str] | None:
    _unloaded.clear()
    try:
        checkpoint = load_checkpoint(path)
        _unloaded[path, version] = checkpoint
        return stored_class_names(checkpoint)
    except UserError as error:
        if path in str(error):
            raise
        raise UserError(f"{path}: {error}") from error


def read_checkpoint(path: str) -> dict:
    """Read a checkpoint to load it; one whose class names were checked is not read again.

    Raises:
        UserError: see :func:`apa_det.checkpoint.load_checkpoint`.
    """
    if _unloaded and os.path.isfile(path):
        checkpoint = _unloaded.pop((path, _version(path)), None)
        if checkpoint is not None:
            return checkpoint
    return load_checkpoint(path)
