"""Checks of a job before any work is done on it."""

import logging
import os
from collections.abc import Sequence
from urllib.parse import urlparse

import torch
import torch.distributed.fsdp
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ...checkpoint import read_class_names
from ...data import ensure_metadata, require_dataset_files
from ...errors import MissingFileError, UserError
from ...evaluation import load_engine
from ..job import Job

__all__ = [
    "check_job",
    "check_num_classes",
    "check_training_sets",
    "require_weights",
]

logger = logging.getLogger(__name__)


def check_job(job: Job, *, eval_only: bool = False, resume: bool = False) -> None:
    """Raise an error for the first setting of a job that cannot work.

    Args:
        job: the job; its datasets are registered.
        eval_only: only evaluate: training sets and schedule are not checked.
        resume: as the ``--resume`` flag.

    Raises:
        UserError: the message names the config key and the fix.
    """
    _require_no_nccl_for_cpu(job)
    require_weights(job, eval_only=eval_only, resume=resume)
    _check_datasets(job, eval_only)
    if not eval_only:
        _check_transfer(job)
        _check_solver(job)
    job.check(eval_only=eval_only)
    if eval_only:  # else after the training set has been read
        job.read_class_counts()
    _check_evaluation(job)
    if job.best_metric and not eval_only:
        _check_best_metric(job)


def check_num_classes(job: Job, dataset_names: Sequence[str]) -> None:
    """Raise a UserError for a dataset whose number of classes is not the model's.

    Skips datasets without class names, and models whose number of classes is unknown. Reads
    datasets of :func:`apa_det.data.register_lvis_format` that were not read yet.
    """
    known = job.num_classes()
    if known is None:
        return
    num_classes, key = known
    for name in dataset_names:
        ensure_metadata(name)
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise UserError(
                f"The dataset {name} has {len(classes)} classes, but {key} is {num_classes}: set "
                f"it to {len(classes)}."
            )


def check_training_sets(job: Job) -> None:
    """Check the training sets once the loader has read them; see :func:`check_num_classes`."""
    check_num_classes(job, job.train_datasets)
    job.read_class_counts()
    for name in job.test_datasets if job.train_datasets else ():
        train_name = job.train_datasets[0]
        trained, tested = (
            MetadataCatalog.get(n).get("thing_classes", []) for n in (train_name, name)
        )
        for i, (ours, theirs) in enumerate(zip(trained, tested, strict=False)):
            if ours != theirs:
                logger.warning(
                    "Class %d is %r in %s but %r in %s: the metrics treat them as the same class.",
                    *(i, ours, train_name, theirs, name),
                )
                break


def require_weights(job: Job, *, eval_only: bool, resume: bool) -> None:
    """Raise a UserError unless the checkpoint to start or to resume from exists."""
    key = job.KEYS["weights"]
    last = os.path.join(job.output_dir, "last_checkpoint")
    if resume and PathManager.isfile(last):
        with PathManager.open(last) as f:
            path = os.path.join(job.output_dir, f.read().strip())
        if not PathManager.isfile(path):
            raise MissingFileError(
                f"{last} names {path} to resume from, which does not exist: write the name of "
                "another checkpoint of that folder into it, or delete it to start from scratch."
            )
        return
    if eval_only and not job.weights:
        raise UserError(f"{key} is empty: set it to the checkpoint of a trained model.")
    url = urlparse(job.weights)
    if not url.scheme and url.path and not PathManager.isfile(url.path):
        raise MissingFileError(
            f"{key} is {url.path}, and there is no such file: give the path of a checkpoint, or "
            '"" to train from random weights.'
        )


def _require_no_nccl_for_cpu(job: Job) -> None:
    several = comm.get_world_size() > 1
    if job.device == "cpu" and several and torch.distributed.get_backend() == "nccl":
        raise UserError(
            "Several processes train on cpu only if no GPU is visible: set the environment "
            f"variable CUDA_VISIBLE_DEVICES to nothing, or {job.KEYS['device']} to cuda."
        )


def _check_datasets(job: Job, eval_only: bool) -> None:
    train = () if eval_only else job.train_datasets
    for name in (*train, *job.test_datasets):
        require_dataset_files(name)
    check_num_classes(job, job.test_datasets)
    # Reading the others takes long: check_training_sets runs once the loader has read them.
    check_num_classes(job, [n for n in train if MetadataCatalog.get(n).get("thing_classes")])


def _check_transfer(job: Job) -> None:
    if job.transfer_from and not job.weights:
        raise UserError(
            f"{job.KEYS['transfer_from']} is {job.transfer_from}, but there is no checkpoint to "
            f"transfer from: set {job.KEYS['weights']}."
        )
    if job.transfer_from not in ("", "checkpoint"):  # class names in a file are read with it
        read_class_names(job.transfer_from, {})


def _check_solver(job: Job) -> None:
    _require_equal_parts(job)
    keys = job.KEYS
    if job.ema_decay is not None and not 0 <= job.ema_decay < 1:
        raise UserError(f"{keys['ema_decay']} must be in [0, 1), got {job.ema_decay}.")
    if job.ema_decay is not None and job.precise_bn_iters:
        raise UserError(
            f"{keys['precise_bn']} computes statistics for the weights that are trained, but "
            f"{keys['ema']} evaluates averaged ones: set one of the two to False."
        )
    if job.fsdp and not hasattr(torch.distributed.fsdp, "fully_shard"):
        raise UserError(f"{keys['fsdp']} needs torch >= 2.6, got {torch.__version__}.")
    if job.fsdp and job.ddp.get("find_unused_parameters"):
        raise UserError(
            f"{keys['find_unused_parameters']} does not work with {keys['fsdp']}: set one of the "
            "two to False."
        )


def _require_equal_parts(job: Job) -> None:
    batch, parts, keys = job.batch_size, job.num_parts, job.KEYS
    reference = job.reference_world_size
    processes = reference or comm.get_world_size()
    if parts < 1:
        raise UserError(f"{keys['num_parts']} must be >= 1, got {parts}.")
    if batch is not None and (batch < 1 or batch % (processes * parts)):
        of = f" ({keys['reference_world_size']})" if reference else ""
        raise UserError(
            f"{keys['batch_size']} must be a multiple of {processes * parts}, got {batch}: each of "
            f"{processes} processes{of} splits its images into {keys['num_parts']} {parts} equal "
            "parts."
        )


def _check_evaluation(job: Job) -> None:
    if job.count_from:
        require_dataset_files(job.count_from)
    for name in job.test_datasets:
        if job.is_long_tail(name):
            load_engine(job.engine, "boundary" if "boundary" in job.extra_metrics else "bbox")
        elif job.subset:
            raise UserError(
                f"{job.KEYS['subset']} needs datasets in LVIS format, which {name} is not: "
                f"{job.KEYS['long_tail']}, or set {job.KEYS['subset']} to 0."
            )


def _check_best_metric(job: Job) -> None:
    names = job.metric_names()
    if names is not None and job.best_metric not in names:
        raise UserError(
            f"{job.KEYS['best_metric']} {job.best_metric} is not a metric of this evaluation: "
            + (f"choose one of {', '.join(names)}." if names else "there is no test set.")
        )
