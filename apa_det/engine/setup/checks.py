"""Checks of a job before it runs."""

import logging
import os
from urllib.parse import urlparse

import torch
import torch.distributed.fsdp
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ...checkpoint import read_class_names
from ...checkpoint.download import download_checkpoint
from ...data import require_annotations, require_dataset_files
from ...data.class_names import align_training_sets
from ...errors import MissingFileError, UserError
from ...evaluation import load_engine
from ...text import printable
from ..job import Job
from ..model_classes import check_classes, check_num_classes
from ..run_folder import LAST, resume_candidates

logger = logging.getLogger(__name__)

_PUBLISHED = "https://github.com/kostas1515/AGLU"


def check_job(job: Job, *, eval_only: bool = False, resume: bool = False) -> None:
    """Check the settings of a job.

    Args:
        job: the job; its datasets are registered.
        eval_only: skip the checks of training sets and schedule.
        resume: as the ``--resume`` flag.

    Raises:
        UserError: a setting is invalid; the message names the config key and the fix.
    """
    _check_backend(job)
    require_weights(job, eval_only=eval_only, resume=resume)
    for name in (*(() if eval_only else job.train_datasets), *job.test_datasets):
        require_dataset_files(name)
    for name in () if eval_only else job.train_datasets:
        require_annotations(name)
    names = check_classes(job, eval_only=eval_only, resume=resume)
    if not eval_only:
        _check_transfer(job)
        _check_solver(job)
    job.check(eval_only=eval_only)
    for processing in job.postprocessings():
        processing.set_class_names(names)
        processing.thresholds(0.0)
    if eval_only:  # in training, check_training_sets does it
        if names is not None:
            align_training_sets(job.counted_datasets(), names)
        job.read_class_counts()
    _check_evaluation(job)
    if job.best_metric and not eval_only:
        _check_best_metric(job)


def check_training_sets(job: Job) -> None:
    """Check the training sets after the loader has read them."""
    check_num_classes(job, job.train_datasets)
    job.read_class_counts()


def require_weights(job: Job, *, eval_only: bool, resume: bool) -> None:
    """Raise a UserError unless the checkpoint to start or to resume from exists.

    If it is given by a URL, it is downloaded.
    """
    key = job.KEYS["weights"]
    paths = [os.path.join(job.output_dir, name) for name in resume_candidates(job.output_dir)]
    if resume and paths:
        usable = paths[:1] if eval_only else paths  # an evaluation is of no other checkpoint
        if not any(map(PathManager.isfile, usable)):
            raise MissingFileError(
                f"{os.path.join(job.output_dir, LAST)} names {paths[0]}, which does not exist: "
                "write the name of another checkpoint of this folder into it, or delete it to "
                "start a new training."
            )
        return
    if eval_only and not job.weights:
        raise UserError(f"{key} is empty: set it to the checkpoint of a trained model.")
    if "://" in job.weights:
        download_checkpoint(job.weights)
        return
    url = urlparse(job.weights)
    if not url.scheme and url.path and not PathManager.isfile(url.path):
        published = url.path.endswith("_APA.pth")  # the names in our configs
        where = f" The authors of APA publish theirs at {_PUBLISHED}." if published else ""
        raise MissingFileError(
            f"{key} is {printable(url.path, 300)}, which does not exist: set it to the path of a "
            f'checkpoint, or to "" to train from random weights.{where}'
        )


def _check_backend(job: Job) -> None:
    several = comm.get_world_size() > 1
    if job.device == "cpu" and several and torch.distributed.get_backend() == "nccl":
        raise UserError(
            f"{job.KEYS['device']} is cpu, but the processes communicate by NCCL, which needs "
            "GPUs: set it to cuda, or hide the GPUs with CUDA_VISIBLE_DEVICES= in the environment."
        )


def _check_transfer(job: Job) -> None:
    if job.transfer_from and not job.weights:
        raise UserError(
            f"{job.KEYS['transfer_from']} is {job.transfer_from}, but {job.KEYS['weights']} is "
            "empty: set it to a checkpoint."
        )
    if job.transfer_from not in ("", "checkpoint"):  # a checkpoint is read later
        read_class_names(job.transfer_from, {})


def _check_solver(job: Job) -> None:
    _require_equal_parts(job)
    _check_precision(job)
    keys = job.KEYS
    if job.patience and not (job.best_metric and job.eval_period > 0):
        raise UserError(
            f"{keys['patience']} is {job.patience}, which needs evaluations during the training: "
            f"set {keys['best_metric']} to a metric and {keys['eval_period']} to iterations."
        )
    if job.ema_decay is not None and job.precise_bn_iters:
        raise UserError(
            f"{keys['precise_bn']} computes statistics for the trained weights, but {keys['ema']} "
            "evaluates the averaged ones: set one of the two to False."
        )
    if job.fsdp and not hasattr(torch.distributed.fsdp, "fully_shard"):
        raise UserError(f"{keys['fsdp']} needs torch >= 2.6, got {torch.__version__}.")
    if job.fsdp and job.ddp.get("find_unused_parameters"):
        raise UserError(
            f"{keys['find_unused_parameters']} does not work with {keys['fsdp']}: set one of the "
            "two to False."
        )


def _check_precision(job: Job) -> None:
    key, dtype = job.KEYS["amp_dtype"], job.amp_dtype
    if dtype and not job.mixed_precision:
        raise UserError(
            f"{key} {dtype} has no effect while {job.KEYS['mixed_precision']} is False: set that "
            f'to True, or {key} to "".'
        )
    is_cuda = torch.device(job.device).type == "cuda"
    if dtype == "bfloat16" and is_cuda and not torch.cuda.is_bf16_supported(False):
        raise UserError(
            f"{key} is bfloat16, but {torch.cuda.get_device_name()} has no bfloat16 arithmetic: "
            "set it to float16."
        )


def _require_equal_parts(job: Job) -> None:
    batch, parts, keys = job.batch_size, job.num_parts, job.KEYS
    reference = job.reference_world_size
    processes = reference or comm.get_world_size()
    if batch is not None and batch % (processes * parts):
        source = f" ({keys['reference_world_size']})" if reference else ""
        raise UserError(
            f"{keys['batch_size']} must be a multiple of {processes * parts}, got {batch}: each of "
            f"{processes} processes{source} splits its images into {parts} equal parts "
            f"({keys['num_parts']})."
        )


def _check_evaluation(job: Job) -> None:
    if job.count_from:
        require_dataset_files(job.count_from)
    for name in job.test_datasets:
        if job.is_long_tail(name):
            load_engine(job.engine, "boundary" if "boundary" in job.extra_metrics else "bbox")
        elif job.subset:
            raise UserError(
                f"{job.KEYS['subset']} needs the long-tail evaluation, which {name} does not have: "
                f"set {job.KEYS['subset']} to 0, or {job.LONG_TAIL_ADVICE}."
            )


def _check_best_metric(job: Job) -> None:
    names, key = job.metric_names(), job.KEYS["best_metric"]
    if names == []:
        hidden = job.test_datasets and not job.annotated_test_datasets()
        reason = "the test sets have no ground truth" if hidden else "there is no test set"
        raise UserError(f'{key} is {job.best_metric}, but {reason}: set it to "".')
    if names is not None and job.best_metric not in names:
        several = ", with the name of the test set first" if len(job.test_datasets) > 1 else ""
        raise UserError(
            f"{key} must be one of {', '.join(names)}{several}; got {job.best_metric!r}."
        )
