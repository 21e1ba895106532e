"""The analysis of a checkpoint, as a config describes it."""

import logging
from collections.abc import Callable

import numpy as np
from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from ...analysis import Analysis, analyze
from ...evaluation import FrequencyGroups, choose_subset
from ...evaluation.evaluator import category_ids, read_ground_truth
from ..checkpointer import StrictCheckpointer, load_for_evaluation
from ..evaluation import frequency_groups
from ..setup.lazy import dataset_names

__all__ = ["analyze_checkpoint", "analyze_lazy_checkpoint"]

logger = logging.getLogger(__name__)


def analyze_checkpoint(cfg: CfgNode, num_images: int) -> Analysis:
    """Analyze ``MODEL.WEIGHTS`` on pictures of the first of ``DATASETS.TEST``.

    Args:
        cfg: the config, as :func:`apa_det.engine.setup_job` gives it for evaluation. The frequency
            groups are those of ``TEST.FREQUENCY_GROUPS`` and ``TEST.COUNT_FROM``.
        num_images: how many pictures, chosen so that rare categories stay in.

    Raises:
        ValueError: the file lacks a parameter of the model, or has it in another shape; or the
            model takes proposals from a file.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError("MODEL.LOAD_PROPOSALS True: a model is analyzed on proposals of an RPN.")
    model = build_model(cfg)
    load_for_evaluation(cfg, model)
    return _analyze(
        model,
        cfg.DATASETS.TEST[0],
        DatasetMapper(cfg, is_train=False),
        num_images,
        groups=frequency_groups(cfg),
        count_from=cfg.TEST.COUNT_FROM or None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def analyze_lazy_checkpoint(cfg: DictConfig, num_images: int) -> Analysis:
    """:func:`analyze_checkpoint` of ``train.init_checkpoint`` and ``dataloader.test``.

    The frequency groups are those of ``dataloader.evaluator``.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    averaged = bool(cfg.train.get("ema") and cfg.train.ema.enabled)
    StrictCheckpointer(model, averaged=averaged).load(cfg.train.init_checkpoint)
    evaluator, test = cfg.dataloader.get("evaluator") or {}, cfg.dataloader.test
    return _analyze(
        model,
        dataset_names(cfg, "test")[0],
        instantiate(test.mapper),
        num_images,
        groups=instantiate(evaluator.get("groups")),
        count_from=evaluator.get("count_from"),
        num_workers=test.num_workers,
    )


def _analyze(
    model: nn.Module,
    dataset_name: str,
    mapper: Callable[[dict], dict],
    num_images: int,
    *,
    groups: FrequencyGroups | None,
    count_from: str | None,
    num_workers: int,
) -> Analysis:
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    metadata, category_groups = MetadataCatalog.get(dataset_name), None
    if metadata.get("json_file") and any(record.get("annotations") for record in records):
        truth = read_ground_truth(dataset_name, groups, count_from)
        chosen = set(choose_subset(truth, num_images).tolist())
        records = [record for record in records if record["image_id"] in chosen]
        places = np.searchsorted(truth.category_ids, category_ids(metadata))
        groups, category_groups = truth.groups, truth.category_groups[places]
        mapper.is_train = True  # it keeps annotations; the augmentations are still those of a test
        mapper.use_instance_mask = mapper.use_keypoint = False
    else:
        logger.warning("%s has no annotations: its class scores are left out.", dataset_name)
        order = np.random.default_rng(0).permutation(len(records))[:num_images]
        records = [records[i] for i in sorted(order.tolist())]
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=num_workers)
    return analyze(model, loader, groups=groups, category_groups=category_groups)
