"""Evaluation of the jobs of LazyConfigs: ``dataloader.test`` and ``dataloader.evaluator``."""

import copy
import os
from collections import OrderedDict

from detectron2 import evaluation
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig
from torch import nn

from ...evaluation.by_name import by_name
from ..job import Job
from ..loading import CheckedLoader
from .config_files import call_target


def evaluated_datasets(config: DictConfig) -> list[str]:
    """Return the datasets that ``dataloader.evaluator`` is built for, one by one."""
    names = config.dataloader.evaluator.get("dataset_name")
    if isinstance(names, ListConfig):
        return list(names)
    if not names:
        names = config.dataloader.test.dataset.get("names") or ""
    return [names if isinstance(names, str) else [*names, ""][0]]


def build_evaluators(job: Job, suffix: str = "") -> dict[str, DatasetEvaluator]:
    """Build ``dataloader.evaluator`` for each test set.

    Args:
        job: the job.
        suffix: appended to the name of its output folder.
    """
    if job.config.dataloader.get("evaluator") is None:
        return {}
    names = evaluated_datasets(job.config)
    evaluators = {}
    for name in names:
        config = copy.deepcopy(job.config.dataloader.evaluator)
        folder = evaluator_folder(job, name, suffix)
        if job.is_long_tail(name):
            folder = folder or job.test_folder(name, suffix)
            evaluators[name] = job.build_long_tail_evaluator(name, output_dir=folder)
            continue
        if folder:
            config.output_dir = folder
        if "dataset_name" in config:
            config.dataset_name = name
        if call_target(config) is evaluation.COCOEvaluator:
            config._target_ = "apa_det.evaluation.COCOEvaluator"  # the same, with a shorter log
        evaluators[name] = instantiate(config)
    return evaluators


def evaluator_folder(job: Job, dataset_name: str, suffix: str = "") -> str | None:
    """Return the ``output_dir`` of the evaluator of a test set; None if it is not set."""
    folder = (job.config.dataloader.get("evaluator") or {}).get("output_dir")
    if not folder:
        return None
    several = len(evaluated_datasets(job.config)) > 1
    return os.path.join(folder + suffix, dataset_name if several else "")


def test_model(
    config: DictConfig, model: nn.Module, evaluators: dict[str, DatasetEvaluator]
) -> OrderedDict:
    """Evaluate a model on each test set.

    Returns:
        The results, by test set if there are several; empty except in the main process.
    """
    results = OrderedDict()
    for name, evaluator in evaluators.items():
        loader_config = copy.deepcopy(config.dataloader.test)
        if len(evaluators) > 1:
            loader_config.dataset.names = name
        loader = CheckedLoader(instantiate(loader_config))
        results[name] = inference_on_dataset(model, loader, by_name(evaluator, name, model))
        if comm.is_main_process():
            print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def tta_config(model: nn.Module) -> CfgNode:
    """Return the config for ``GeneralizedRCNNWithTTA``, with the settings of the model."""
    heads = getattr(model, "module", model).roi_heads
    predictor = getattr(heads, "box_predictor", None)
    predictor = predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = heads.mask_on
    cfg.MODEL.KEYPOINT_ON = heads.keypoint_on
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = heads.num_classes
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = predictor.test_nms_thresh
    cfg.TEST.DETECTIONS_PER_IMAGE = predictor.test_topk_per_image
    return cfg
