"""Commands for what to do with a trained model, with its real paths."""

import os
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..evaluation.evaluator import RESULTS_FILE
from ..utils.shell import apa_det_command
from .job import Job

_COCO_RESULTS_FILE = "coco_instances_results.json"  # of detectron2's COCOEvaluator, and V3Det's
CONFIG = "config.yaml"


def output_path(job: Job, *names: str) -> str:
    """Return the path of a file in the output folder of a job."""
    path = os.path.join(job.output_dir, *names)
    return path if "://" in path else os.path.normpath(path)


def evaluate_command(job: Job, checkpoint: str) -> str:
    """Return the command that evaluates a checkpoint and writes its predictions."""
    return apa_det_command("eval", [*_config(job), *_overrides(job, {"weights": checkpoint})])


def demo_command(job: Job, checkpoint: str, image: str) -> str:
    """Return the command that draws the detections of a checkpoint in an image."""
    paths = ["--input", image, "--output", output_path(job, "demo")]
    weights = _overrides(job, {"weights": checkpoint})
    return apa_det_command("demo", [*_config(job), *paths, "--opts", *weights])


def advise_command(job: Job) -> str | None:
    """Return the command that advises on the training set; None if it has no file."""
    names = [MetadataCatalog.get(name).get("json_file") for name in job.train_datasets[:1]]
    words = ["--output", output_path(job, "advice")]
    return apa_det_command("prepare-dataset", ["advise", *names, *words]) if any(names) else None


def results_file(job: Job, dataset_name: str) -> str | None:
    """Return the path of the predictions for a test set; None if they are not written."""
    names = [_COCO_RESULTS_FILE]
    if job.is_long_tail(dataset_name):
        names = [RESULTS_FILE] if job.save_predictions else []
    paths = [os.path.join(job.evaluation_folder(dataset_name), name) for name in names]
    paths = [path if "://" in path else os.path.normpath(path) for path in paths]
    return next(filter(PathManager.isfile, paths), None)


def report_command(job: Job, dataset_name: str) -> str | None:
    """Return the command that makes a report of the predictions for a test set.

    None if they are not written, or the test set has no ground truth.
    """
    results = results_file(job, dataset_name)
    if results is None or dataset_name not in job.annotated_test_datasets():
        return None
    metadata = MetadataCatalog.get(dataset_name)
    several = dataset_name if len(job.test_datasets) > 1 else ""
    report = output_path(job, "report", several)
    words = ["--gt", metadata.json_file, "--results", results, "--report", report]
    image_root = metadata.get("image_root")
    if image_root and os.path.isdir(image_root):
        words += ["--image-root", image_root]
    if job.count_from:
        words += ["--count-from", MetadataCatalog.get(job.count_from).json_file]
    if job.groups_text:
        words += ["--groups", job.groups_text]
    if job.engine != "fast":
        words += ["--engine", job.engine]
    return apa_det_command("evaluate-predictions", words)


def _config(job: Job) -> list[str]:
    imports = [word for name in job.imports for word in ("--import", name)]
    return ["--config-file", output_path(job, CONFIG), *imports]


def _overrides(job: Job, values: Mapping[str, object]) -> list[str]:
    if isinstance(job.config, CfgNode):
        return [str(word) for name, value in values.items() for word in (job.KEYS[name], value)]
    quoted = {name: str(value).replace("'", r"\'") for name, value in values.items()}
    return [f"{job.KEYS[name]}='{value}'" for name, value in quoted.items()]
