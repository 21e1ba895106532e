"""The long-tail evaluation as a config asks for it, of whole test sets and of a few pictures."""

import logging
import math
import os
from collections import OrderedDict

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..evaluation import FrequencyGroups, LongTailEvaluator
from ..evaluation.evaluator import RESULTS_FILE
from .checkpointer import load_for_evaluation

__all__ = [
    "SubsetTest",
    "build_long_tail_evaluator",
    "frequency_groups",
    "is_long_tail",
    "subset_loader",
    "without_nan",
    "write_predictions",
]

logger = logging.getLogger(__name__)


def is_long_tail(cfg: CfgNode, dataset_name: str) -> bool:
    """Whether a test set is evaluated by :class:`apa_det.evaluation.LongTailEvaluator`."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    return kind == "lvis" or (kind == "coco" and cfg.TEST.LONG_TAIL)


def frequency_groups(cfg: CfgNode) -> FrequencyGroups | None:
    """The groups of ``TEST.FREQUENCY_GROUPS``; None: LVIS's.

    Raises:
        FileNotFoundError, ValueError: see :meth:`apa_det.evaluation.FrequencyGroups.parse`.
    """
    text = cfg.TEST.FREQUENCY_GROUPS
    return FrequencyGroups.parse(text) if text else None


def build_long_tail_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str, *, subset_only: bool = False
) -> LongTailEvaluator:
    """The evaluator of a test set, by the keys of ``cfg.TEST``."""
    return LongTailEvaluator(
        dataset_name,
        output_dir=output_dir,
        engine=cfg.TEST.ENGINE,
        groups=frequency_groups(cfg),
        count_from=cfg.TEST.COUNT_FROM or None,
        extra_metrics=cfg.TEST.EXTRA_METRICS,
        save_predictions=cfg.TEST.SAVE_PREDICTIONS and not subset_only,
        per_category=cfg.TEST.PER_CATEGORY and not subset_only,
        subset=cfg.TEST.SUBSET,
        subset_only=subset_only,
    )


def without_nan(results: dict) -> dict[str, float]:
    """The flat results, ``{"bbox/AP": …}``; NaN is no JSON, so what is NaN is left out."""
    flat = flatten_results_dict(results)
    return {name: value for name, value in flat.items() if not math.isnan(value)}


class SubsetTest:
    """Evaluates a model on ``TEST.SUBSET`` pictures of each test set, the same ones every time.

    The pictures are read by detectron2's own ``DatasetMapper``.
    """

    def __init__(self, cfg: CfgNode, output_dir: str):
        self._tests: dict[str, tuple[DataLoader, LongTailEvaluator]] = {}
        for name in cfg.DATASETS.TEST:
            evaluator = build_long_tail_evaluator(cfg, name, output_dir, subset_only=True)
            main = comm.is_main_process()
            image_ids = comm.all_gather(evaluator.subset.image_ids if main else None)[0]
            self._tests[name] = subset_loader(cfg, name, image_ids), evaluator

    def __call__(self, model: nn.Module) -> OrderedDict:
        """The results as ``DefaultTrainer.test`` gives them; empty but in the main process."""
        results = OrderedDict()
        for name, (loader, evaluator) in self._tests.items():
            logger.info("A look at %d pictures of %s", len(loader.dataset), name)
            results[name] = inference_on_dataset(model, loader, evaluator)
        return next(iter(results.values())) if len(results) == 1 else results


def write_predictions(cfg: CfgNode, output_dir: str) -> str:
    """Evaluate ``MODEL.WEIGHTS`` on the first of ``DATASETS.TEST``, and keep its predictions.

    With ``TEST.AUG.ENABLED``, they are those of test-time augmentation.

    Returns:
        The result file, in ``output_dir``.

    Raises:
        ValueError: the dataset is none of the long-tail evaluation, or the checkpoint does not fit.
    """
    cfg, name = cfg.clone(), cfg.DATASETS.TEST[0]
    cfg.defrost()
    cfg.TEST.SAVE_PREDICTIONS = True
    if not is_long_tail(cfg, name):
        raise ValueError(
            f"The predictions for {name} cannot be kept: for a dataset of COCO format add "
            "TEST.LONG_TAIL True; others are not supported."
        )
    evaluator = build_long_tail_evaluator(cfg, name, output_dir)
    model = build_model(cfg)
    load_for_evaluation(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        model = GeneralizedRCNNWithTTA(cfg, model)
    results = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
    print_csv_format(results)
    return os.path.join(output_dir, RESULTS_FILE)


def subset_loader(cfg: CfgNode, dataset_name: str, image_ids: np.ndarray) -> DataLoader:
    """detectron2's test loader of some pictures of a registered dataset."""
    chosen = set(image_ids.tolist())
    proposals = None
    if cfg.MODEL.LOAD_PROPOSALS:
        place = list(cfg.DATASETS.TEST).index(dataset_name)
        proposals = [cfg.DATASETS.PROPOSAL_FILES_TEST[place]]
    records = get_detection_dataset_dicts(
        [dataset_name], filter_empty=False, proposal_files=proposals
    )
    return build_detection_test_loader(
        [record for record in records if record["image_id"] in chosen],
        mapper=DatasetMapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
