"""The evaluator for long-tailed detection and instance segmentation, with LVIS's metrics."""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data import ensure_metadata
from ..data.class_names import category_ids, dataset_groups
from ..data.frequency import FrequencyGroups
from ..errors import UserError
from ..text import shown, write_csv
from ..utils.atomic_files import open_atomic
from .detections import Detections
from .engines import load_engine
from .ground_truth import GroundTruth
from .metrics import compute_metrics, require_extra_metrics
from .predictions import PredictionStore, detections_from_instances
from .result import Evaluation, metric_names
from .subset import choose_subset

logger = logging.getLogger(__name__)

METRICS = metric_names()
RESULTS_FILE = "lvis_instances_results.json"


def read_ground_truth(
    dataset_name: str, groups: FrequencyGroups | None = None, count_from: str | None = None
) -> GroundTruth:
    """Read the ground truth of a registered dataset.

    Arguments and errors are those of :class:`LongTailEvaluator`.
    """
    ensure_metadata(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    groups = groups or dataset_groups(dataset_name)
    count_file = None
    if count_from:
        ensure_metadata(count_from)
        count_file = MetadataCatalog.get(count_from).json_file
    return GroundTruth.from_file(metadata.json_file, groups, count_from=count_file)


def evaluator_arguments(cfg: CfgNode) -> dict[str, object]:
    """Return the keyword arguments of :class:`LongTailEvaluator` that the keys ``TEST.*`` set.

    They are ``engine``, ``groups``, ``count_from``, ``extra_metrics``, ``save_predictions`` and
    ``per_category``.

    Args:
        cfg: a config; keys of apa_det that it lacks have their defaults.

    Raises:
        UserError: ``TEST.FREQUENCY_GROUPS`` is not valid.
    """
    get = cfg.TEST.get
    groups = get("FREQUENCY_GROUPS", "")
    return {
        "engine": get("ENGINE", "fast"),
        "groups": FrequencyGroups.parse(groups) if groups else None,
        "count_from": get("COUNT_FROM", "") or None,
        "extra_metrics": get("EXTRA_METRICS", ()),
        "save_predictions": bool(get("SAVE_PREDICTIONS")),
        "per_category": get("PER_CATEGORY", False),
    }


class LongTailEvaluator(DatasetEvaluator):
    """LVIS's box and mask AP, with APr, APc and APf for rare, common and frequent classes.

    It accepts the datasets of detectron2's ``LVISEvaluator``, those of
    :func:`apa_det.data.register_lvis_format`, and COCO-format datasets
    (``register_coco_instances``), whose images count as annotated for every category.

    Attributes:
        category_ids: (K,) int64, the dataset's category id of each model class.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[Literal["bbox", "segm"]] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = 300,
        engine: str = "fast",
        groups: FrequencyGroups | None = None,
        count_from: str | None = None,
        extra_metrics: Sequence[str] = (),
        save_predictions: bool = False,
        per_category: bool = False,
        subset: int = 0,
        subset_only: bool = False,
    ):
        """
        Args:
            dataset_name: a registered dataset with ``json_file`` in its metadata.
            tasks: the IoU types, "bbox", "segm" or both. None: "bbox", and "segm" if the model
                predicts masks. Deprecated: a config, whose keys ``TEST.*`` then replace the
                arguments of :func:`evaluator_arguments`.
            distributed: gather the predictions of all processes and evaluate in the main process.
                Otherwise each process evaluates its own predictions.
            output_dir: the folder for the files of ``save_predictions`` and ``per_category``, and
                for the predictions of a test set without ground truth.
            max_dets_per_image: evaluate this many predictions per image, by score. None: 300.
            engine: "fast" or "lvis", see :func:`apa_det.evaluation.evaluate`.
            groups: the frequency groups. None: LVIS's, by the dataset's thresholds.
            count_from: a registered dataset, usually the training set, whose image counts define
                the frequency groups. None: use the counts of the evaluated file.
            extra_metrics: names in :data:`apa_det.evaluation.METRIC_REGISTRY`, as "AR", "fixed"
                (AP-fixed) and "pool" (AP-pool); "boundary" adds the IoU type "boundary" (boundary
                AP of masks).
            save_predictions: write the predictions to ``lvis_instances_results.json``.
            per_category: write the AP of each category to ``<iou_type>_per_category.csv``.
            subset: also evaluate a subset of this many images, as "subset/bbox" and "subset/segm";
                see :func:`apa_det.evaluation.choose_subset`. 0: no subset.
            subset_only: evaluate only the subset.

        Raises:
            UserError: the ground truth file is missing or invalid, an argument is invalid, or no
                evaluation engine is installed.
        """
        if isinstance(tasks, CfgNode):
            logger.warning(
                "LongTailEvaluator(name, cfg, ...) is deprecated, as detectron2's "
                "LVISEvaluator(name, cfg, ...) is: use LongTailEvaluator(name, output_dir=..., "
                "**apa_det.evaluation.evaluator_arguments(cfg))."
            )
            engine, groups, count_from, extra_metrics, save_predictions, per_category = (
                evaluator_arguments(tasks).values()
            )
            tasks = None
        _check_call(tasks, distributed, output_dir)
        require_extra_metrics(extra_metrics)
        if (save_predictions or per_category) and not output_dir:
            raise UserError("save_predictions and per_category need an output_dir.")
        if subset_only and subset < 1:
            raise UserError(f"subset must be >= 1 with subset_only, got {subset}.")
        self._name = dataset_name
        self._iou_types = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = 300 if max_dets_per_image is None else max_dets_per_image
        self._engine = engine
        self._extra = tuple(extra_metrics)
        self._save_predictions = save_predictions
        self._per_category = per_category
        ensure_metadata(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        self.category_ids = category_ids(metadata)
        if not distributed or comm.is_main_process():
            load_engine(engine, "boundary" if "boundary" in self._extra else "bbox")
            truth = read_ground_truth(dataset_name, groups, count_from)
            self._subset = truth.restricted_to(choose_subset(truth, subset)) if subset else None
            self._truth = None if subset_only else truth
        self.reset()

    @property
    def subset(self) -> GroundTruth:
        """The ground truth of the subset; defined in the processes that evaluate."""
        return self._subset

    def reset(self) -> None:
        self._predictions = PredictionStore()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Store a model's predictions, masks as RLE.

        Args:
            inputs: the model's inputs, each with ``image_id``.
            outputs: the model's outputs, each with ``instances`` (``pred_boxes``, ``scores``,
                ``pred_classes`` and optional ``pred_masks``). An image that is processed twice
                counts once.
        """
        for item, output in zip(inputs, outputs, strict=True):
            image_id = item["image_id"]
            detections = detections_from_instances(output["instances"], image_id, self.category_ids)
            self._predictions.add(image_id, detections)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | dict:
        """Compute the metrics of all predictions since the last reset.

        Returns:
            For each IoU type the :data:`METRICS` in percent, NaN for a group without ground truth,
            and the extra metrics. Empty in all processes but the main one, and for a dataset
            without annotations: its predictions are written to ``lvis_instances_results.json`` as
            LVIS's evaluation server takes them, masks without boxes.
        """
        gathered = self._predictions.gather(self._distributed)
        if gathered is None:
            return {}
        detections, seen = gathered
        if self._truth is not None and not len(self._truth.annotation_ids):
            self._write_for_server(detections)
            return OrderedDict()
        if self._save_predictions:
            self._write(detections)
        results = OrderedDict()
        for prefix, truth in (("", self._truth), ("subset/", self._subset)):
            if truth is not None:
                results.update(self._evaluate(prefix, truth, detections, seen))
        return results

    def _write(self, detections: Detections) -> str:
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, RESULTS_FILE)
        detections.write(path)
        logger.info("Wrote the predictions to %s", path)
        return path

    def _write_for_server(self, detections: Detections) -> None:
        """Write the predictions of a test set without ground truth."""
        logger.info("%s has no ground truth: no metrics are computed.", self._name)
        if not self._output_dir:
            logger.warning("Its predictions are not written: there is no output_dir.")
            return
        path = self._write(detections.for_server())
        logger.info("Submit %s to the evaluation server of the test set.", path)

    def _evaluate(
        self, prefix: str, truth: GroundTruth, detections: Detections, seen: np.ndarray
    ) -> OrderedDict[str, dict[str, float]]:
        name = f"{len(truth.image_ids)} images of {self._name}" if prefix else self._name
        if not len(truth.annotation_ids):  # of a subset
            logger.info("%s have no annotations: there is nothing to evaluate.", name)
            return OrderedDict()
        if prefix:
            detections = detections.select(np.isin(detections.image_ids, truth.image_ids))
        missing = len(truth.image_ids) - np.isin(truth.image_ids, seen).sum()
        if missing:
            logger.warning(
                "The model processed only %d of %d images: all objects in the others count as "
                "missed.",
                *(len(truth.image_ids) - missing, len(truth.image_ids)),
            )
        elif not len(detections):
            logger.warning("The model has no detections in %s: its metrics are 0.", name)
        results = OrderedDict()
        for iou_type in self._iou_types_for(truth, detections):
            logger.info(
                "Evaluating %s AP: %d detections, at most %d per image, %d images ...",
                *(prefix + iou_type, len(detections), self._max_dets, len(truth.image_ids)),
            )
            values, counts = self._metrics(prefix, iou_type, truth, detections)
            results[prefix + iou_type] = values
        evaluated = ", ".join(f"{counts[n]} {label}" for n, label in truth.groups.named())
        logger.info("Categories evaluated: %s.", evaluated)
        undefined = [n for values in results.values() for n, v in values.items() if math.isnan(v)]
        if undefined:
            names = ", ".join(dict.fromkeys(undefined))
            logger.info("NaN: %s has no ground truth for %s.", name, names)
        return results

    def _iou_types_for(self, truth: GroundTruth, detections: Detections) -> tuple[str, ...]:
        iou_types = self._iou_types
        if iou_types is None:
            iou_types = ("bbox",)
            if detections.masks is not None and truth.segmentations is None:
                logger.warning("%s has no masks: evaluating boxes only.", self._name)
            elif detections.masks is not None:
                iou_types = ("bbox", "segm")
        elif "segm" in iou_types and len(detections) and detections.masks is None:
            raise UserError("tasks contains 'segm', but the model predicts no masks.")
        boundary = "boundary" in self._extra and "segm" in iou_types
        return (*iou_types, "boundary") if boundary else iou_types

    def _metrics(
        self, prefix: str, iou_type: str, truth: GroundTruth, detections: Detections
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Return the metrics, and the number of categories that have them in each group."""
        metrics, evaluation = compute_metrics(
            *(truth, detections, iou_type, self._extra),
            engine=self._engine,
            max_dets=self._max_dets,
        )
        if self._per_category and not prefix:
            self._write_per_category(iou_type, evaluation)
        table = create_small_table(metrics)
        logger.info("Evaluation results for %s:\n%s", prefix + iou_type, table)
        return metrics, evaluation.categories_evaluated()

    def _write_per_category(self, iou_type: str, evaluation: Evaluation) -> None:
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, f"{iou_type}_per_category.csv")
        rows = evaluation.per_category()
        with open_atomic(path, newline="") as file:
            write_csv(file, list(rows[0]), (row.values() for row in rows))
        logger.info("Wrote the AP of each category to %s", path)


def _check_call(tasks: object, distributed: object, output_dir: object) -> None:
    """Raise a UserError for arguments of another order or type, before any inference."""
    names = ("bbox", "segm")
    if tasks is not None:
        is_list = isinstance(tasks, Sequence) and not isinstance(tasks, str)
        if not is_list or not tasks or any(task not in names for task in tasks):
            raise UserError(
                f"tasks must be None or a tuple of {' and '.join(names)}; got {shown(tasks)}."
            )
    if not isinstance(distributed, bool):
        raise UserError(f"distributed must be True or False, got {shown(distributed)}.")
    if not isinstance(output_dir, str | os.PathLike | None):
        raise UserError(f"output_dir must be a folder or None, got {shown(output_dir)}.")
