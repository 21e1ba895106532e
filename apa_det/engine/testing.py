"""Evaluate the checkpoint of a job, or a model in training on a subset of the images."""

import logging
import math
from collections import OrderedDict

import numpy as np
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..data.catalog import select_images
from ..data.class_names import align_training_sets
from ..evaluation import LongTailEvaluator
from ..evaluation.by_name import by_name
from .checkpointer import StrictCheckpointer
from .closing import log_evaluation_end
from .decoupled import last_stage
from .job import Job
from .loading import CheckedLoader
from .model_classes import model_class_names, name_classes

logger = logging.getLogger(__name__)


def evaluate(job: Job, *, resume: bool = False) -> OrderedDict:
    """Evaluate a job's checkpoint on its test sets, and with test-time augmentation if enabled.

    The predictions are written, unless the config says otherwise; the log has the command that
    makes the report of them.

    Args:
        job: the job, as :func:`apa_det.engine.setup_job` returns it.
        resume: evaluate the last checkpoint in the output folder, if there is one.

    Returns:
        The results; empty except in the main process.

    Raises:
        UserError: the checkpoint does not fill the model.
    """
    if resume:
        job = last_stage(job)
    job = job.saving_predictions()
    model = load_model(job, resume=resume)
    results = job.test(model)
    if job.test_time_augmentation:
        results.update(job.test_with_augmentation(model))
    job.verify(results)
    if comm.is_main_process():
        log_evaluation_end(job)
    return results


def load_model(job: Job, *, resume: bool = False) -> nn.Module:
    """Build a job's model, in training mode, and load all of its weights and its class names.

    With ``job.ema_decay``, the averaged weights are loaded if the file has them.

    Args:
        job: the job.
        resume: load the last checkpoint in the output folder, if there is one.

    Raises:
        UserError: the file lacks a parameter of the model, or has it in another shape.
    """
    model = job.build_model()
    averaged = job.ema_decay is not None
    checkpointer = StrictCheckpointer(model, job.output_dir, averaged=averaged, keys=job.KEYS)
    checkpointer.resume_or_load(job.weights, resume=resume)
    names = model_class_names(job, checkpointer.stored_class_names, checkpointer.path)
    name_classes(model, names)
    job.check_inference(model)
    if names is not None and job.counted_datasets():
        align_training_sets(job.counted_datasets(), names)
        job.read_class_counts()
    return model


class SubsetTest:
    """Evaluates a model on ``job.subset`` images of each test set, the same ones every time."""

    def __init__(self, job: Job):
        self._names = job.test_datasets
        self._tests: dict[str, tuple[CheckedLoader, LongTailEvaluator]] = {}
        for name in job.annotated_test_datasets():
            evaluator = job.build_long_tail_evaluator(
                name, subset_only=True, save_predictions=False, per_category=False
            )
            main = comm.is_main_process()
            image_ids = comm.all_gather(evaluator.subset.image_ids if main else None)[0]
            self._tests[name] = build_subset_loader(job, name, image_ids), evaluator

    def __call__(self, model: nn.Module) -> OrderedDict:
        """Return and log results as ``DefaultTrainer.test``; empty except in the main process."""
        results = OrderedDict((name, {}) for name in self._names)
        for name, (loader, evaluator) in self._tests.items():
            logger.info("Evaluating %d images of %s", len(loader.dataset), name)
            results[name] = inference_on_dataset(model, loader, by_name(evaluator, name, model))
            if comm.is_main_process():
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results


def build_subset_loader(job: Job, dataset_name: str, image_ids: np.ndarray) -> CheckedLoader:
    """Build a test loader of some images of a registered dataset."""
    records = job.read_test_records(dataset_name)
    return job.build_test_loader(select_images(records, set(image_ids.tolist())))


def without_nan(results: dict) -> dict[str, float]:
    """Flatten results to ``{"bbox/AP": ...}``, without NaN, which JSON does not have."""
    flat = flatten_results_dict(results)
    return {name: value for name, value in flat.items() if not math.isnan(value)}
