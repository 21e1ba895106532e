"""What the log of a training or evaluation ends with: the result, its files and what to do next."""

import logging
import os
import shlex

from detectron2.utils.file_io import PathManager

from ..data.catalog import get_dataset_records
from .figures.figure_writer import BATCH, LABELS, PREDICTIONS, RESULTS
from .job import Job
from .next_commands import (
    CONFIG,
    demo_command,
    evaluate_command,
    output_path,
    report_command,
    results_file,
)
from .run_folder import BEST, FINAL, METRICS, periodic_checkpoints
from .training_history import TrainingHistory

logger = logging.getLogger(__name__)

_FILES = (RESULTS, PREDICTIONS, LABELS, BATCH, "apa_parameters.png", METRICS, "log.txt")


def log_training_end(job: Job) -> None:
    """Log the best metric and its checkpoint, the files of a training and the next command."""
    sentence, checkpoint = best_model(job)
    if not PathManager.isfile(os.path.join(job.output_dir, CONFIG)):  # of setup_job
        job.save_config()
    found = [name for name in _FILES if PathManager.isfile(os.path.join(job.output_dir, name))]
    where = f"The results are in {shlex.quote(output_path(job))}: {', '.join(found)}."
    logger.info("%s\n%s\n%s", sentence, where, next_step(job, checkpoint))


def log_evaluation_end(job: Job) -> None:
    """Log where the predictions for each test set are, and the command that reports them."""
    for name in job.test_datasets:
        results = results_file(job, name)
        if results is not None:
            command = report_command(job, name)
            report = f"\nNext, make a report of them:\n  {command}" if command else ""
            logger.info("The predictions for %s are in %s.%s", name, shlex.quote(results), report)


def best_model(job: Job) -> tuple[str, str]:
    """Return a sentence about the best model of a training, and the path of its checkpoint.

    It is the best by ``job.best_metric``, else by AP. If its weights are not kept, the path is that
    of the last model.
    """
    history = TrainingHistory.read(job.output_dir)
    last, final = max(history.scalars, default=0), output_path(job, FINAL)
    wanted = job.best_metric
    is_wanted = bool(wanted) and history.best(wanted) is not None
    metric = wanted if is_wanted else history.main_metric()
    if metric is None:
        return f"The model after {last:,} iterations: {shlex.quote(final)}", final
    done, value = history.best(metric)
    iterations, values = history.series(metric)
    if not is_wanted and (iterations[-1], values[-1]) == (last, value):
        done = last
    best = output_path(job, BEST)
    sentence = f"Best {metric}: {value:.2f}, after {done:,} of {last:,} iterations"
    path = final if done == last else None
    if is_wanted and PathManager.isfile(best):
        path = best
    elif path is None and done - 1 in (kept := periodic_checkpoints(job.output_dir)):
        path = output_path(job, kept[done - 1])
    if path is not None:
        return f"{sentence}: {shlex.quote(path)}", path
    return (
        f"{sentence}, whose weights are not kept: set {job.KEYS['best_metric']} to {metric} to "
        f"keep them. The last model, with {values[-1]:.2f}: {shlex.quote(final)}",
        final,
    )


def next_step(job: Job, checkpoint: str) -> str:
    """Return what to do next with a trained checkpoint, with the command."""
    names = [] if job.metric_names() == [] else [*job.annotated_test_datasets()]
    if (
        names
        and os.path.basename(checkpoint) == FINAL
        and (report := report_command(job, names[0]))
    ):
        return f"Next, make a report of its predictions:\n  {report}"
    if names:
        return f"Next, write its predictions for a report:\n  {evaluate_command(job, checkpoint)}"
    return f"Next, draw its detections:\n  {demo_command(job, checkpoint, first_image(job))}"


def first_image(job: Job) -> str:
    """Return the path of an image of a test set, else of a training set."""
    names = [*job.test_datasets, *job.train_datasets][:1]
    return get_dataset_records(names, filter_empty=False, check_consistency=False)[0]["file_name"]
