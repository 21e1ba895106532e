"""The evaluator for long-tailed detection and instance segmentation: LVIS's metrics."""

import csv
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data import ensure_metadata
from ..data.frequency import FrequencyGroups
from .detections import Detections
from .engines import evaluate, load_engine
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .predictions import PredictionStore, detections_from_instances
from .result import Evaluation, metric_names
from .subset import choose_subset

__all__ = [
    "EXTRA_METRICS",
    "METRICS",
    "LongTailEvaluator",
    "category_ids",
    "read_ground_truth",
    "task_metrics",
]

logger = logging.getLogger(__name__)

METRICS = metric_names()
RESULTS_FILE = "lvis_instances_results.json"
EXTRA_METRICS = ("AR", "fixed", "pool", "boundary")


def task_metrics(
    groups: tuple[str, ...] = ("r", "c", "f"), extra: Sequence[str] = (), max_dets: int = 300
) -> tuple[str, ...]:
    """The names of the metrics that :class:`LongTailEvaluator` gives for each task."""
    names = list(metric_names(groups))
    if "AR" in extra:
        names += [f"AR{name}@{max_dets}" for name in ("", "s", "m", "l", *groups)]
    names += [f"AP{g}_{kind}" for kind in ("fixed", "pool") if kind in extra for g in ("", *groups)]
    return tuple(names)


def read_ground_truth(
    dataset_name: str, groups: FrequencyGroups | None = None, count_from: str | None = None
) -> GroundTruth:
    """The ground truth of a registered dataset; the arguments are :class:`LongTailEvaluator`'s."""
    ensure_metadata(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if groups is None and "rare_max" in metadata.as_dict():
        groups = FrequencyGroups.lvis(metadata.rare_max, metadata.common_max)
    count_file = None
    if count_from:
        ensure_metadata(count_from)
        count_file = MetadataCatalog.get(count_from).json_file
    return GroundTruth.from_file(metadata.json_file, groups, count_from=count_file)


class LongTailEvaluator(DatasetEvaluator):
    """Box and mask AP by LVIS's rules, with APr, APc and APf for rare, common and frequent classes.

    It takes what detectron2's ``LVISEvaluator`` takes, for datasets of
    :func:`apa_det.data.register_lvis_format`, for the LVIS names built into detectron2, and for
    COCO-format datasets (``register_coco_instances``), whose pictures count as searched for every
    category.

    Attributes:
        category_ids: (K,) int64, the dataset's category id of each class of a model.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
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
            dataset_name: a registered dataset whose metadata name the ``json_file``.
            tasks: "bbox", "segm" or both. None: boxes, and masks if the model predicts them.
            distributed: gather the predictions of all processes, and evaluate in the main one;
                else each process evaluates its own.
            output_dir: the folder to write files to, as asked for by the next arguments.
            max_dets_per_image: the predictions with the highest scores that count for each picture.
            engine: "fast" or "lvis", see :func:`apa_det.evaluation.evaluate`.
            groups: the frequency groups. None: LVIS's, by the dataset's thresholds.
            count_from: a registered dataset to take the categories' image counts from, such as the
                training set. None: those of the evaluated file.
            extra_metrics: any of :data:`EXTRA_METRICS`: "AR" (average recalls, of groups too),
                "fixed" (AP-fixed), "pool" (AP-pool), "boundary" (a task more: mask boundary AP).
            save_predictions: write the predictions as ``lvis_instances_results.json``.
            per_category: write the AP of each category, as ``<task>_per_category.csv``.
            subset: evaluate so many pictures apart too, as tasks "subset/bbox" and "subset/segm";
                see :func:`apa_det.evaluation.choose_subset`. 0: none.
            subset_only: evaluate nothing but the subset.

        Raises:
            FileNotFoundError, ValueError: the ground truth is missing or broken, or an argument is
                none of its choices.
            ImportError: no engine is installed.
        """
        unknown = set(extra_metrics) - set(EXTRA_METRICS)
        if unknown:
            raise ValueError(
                f"The extra metrics are {', '.join(EXTRA_METRICS)}, not {', '.join(unknown)}."
            )
        if (save_predictions or per_category) and not output_dir:
            raise ValueError("To write files, the evaluator needs an output_dir.")
        if subset_only and subset < 1:
            raise ValueError("subset_only needs the number of pictures in subset.")
        self._name = dataset_name
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
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
        """The ground truth of the pictures in the subset, in the process that evaluates."""
        return self._subset

    def reset(self) -> None:
        self._predictions = PredictionStore()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep a model's predictions, masks as RLE.

        Args:
            inputs: the model's inputs; each names its picture by ``image_id``.
            outputs: its outputs, each with ``instances`` (``pred_boxes``, ``scores``,
                ``pred_classes`` and maybe ``pred_masks``). A picture seen twice counts once.
        """
        for picture, output in zip(inputs, outputs, strict=True):
            image_id = picture["image_id"]
            detections = detections_from_instances(output["instances"], image_id, self.category_ids)
            self._predictions.add(image_id, detections)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | dict:
        """Compute the metrics from all that was processed since the last reset.

        Returns:
            For each task the :data:`METRICS` in percent, NaN for a group without ground truth, and
            the extra metrics that were asked for. Empty in every process but the main one, and
            where the dataset has no annotation.
        """
        gathered = self._predictions.gather(self._distributed)
        if gathered is None:
            return {}
        detections, seen = gathered
        if self._save_predictions:
            self._write(detections)
        results = OrderedDict()
        for prefix, truth in (("", self._truth), ("subset/", self._subset)):
            if truth is not None:
                results.update(self._evaluate(prefix, truth, detections, seen))
        return results

    def _write(self, detections: Detections) -> None:
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, RESULTS_FILE)
        detections.write(path)
        logger.info("Wrote the predictions to %s", path)

    def _evaluate(
        self, prefix: str, truth: GroundTruth, detections: Detections, seen: np.ndarray
    ) -> OrderedDict[str, dict[str, float]]:
        what = f"{len(truth.image_ids)} pictures of {self._name}" if prefix else self._name
        if not len(truth.annotation_ids):
            logger.info("%s has no annotations: there is nothing to evaluate.", what)
            return OrderedDict()
        if prefix:
            detections = detections.select(np.isin(detections.image_ids, truth.image_ids))
        missing = len(truth.image_ids) - np.isin(truth.image_ids, seen).sum()
        if missing:
            logger.warning(
                "The model saw only %d of the %d pictures: what is in the others counts as missed.",
                *(len(truth.image_ids) - missing, len(truth.image_ids)),
            )
        elif not len(detections):
            logger.warning("The model detected nothing in %s: its metrics are 0.", what)
        results = OrderedDict()
        for task in self._tasks_for(truth, detections):
            logger.info(
                "Evaluating %s AP of %d detections, at most %d for each of %d pictures ...",
                *(prefix + task, len(detections), self._max_dets, len(truth.image_ids)),
            )
            results[prefix + task] = self._metrics(prefix, task, truth, detections)
        undefined = [n for values in results.values() for n, v in values.items() if math.isnan(v)]
        if undefined:
            names = ", ".join(dict.fromkeys(undefined))
            logger.info("NaN: %s has no ground truth that counts for %s.", what, names)
        return results

    def _tasks_for(self, truth: GroundTruth, detections: Detections) -> tuple[str, ...]:
        tasks = self._tasks
        if tasks is None:
            tasks = ("bbox",)
            if detections.masks is not None and truth.segmentations is None:
                logger.warning("%s has no masks: only boxes are evaluated.", self._name)
            elif detections.masks is not None:
                tasks = ("bbox", "segm")
        elif "segm" in tasks and len(detections) and detections.masks is None:
            raise ValueError("The tasks name segm, but the model predicts no masks.")
        boundary = "boundary" in self._extra and "segm" in tasks
        return (*tasks, "boundary") if boundary else tasks

    def _metrics(
        self, prefix: str, task: str, truth: GroundTruth, detections: Detections
    ) -> dict[str, float]:
        pool = "pool" in self._extra
        evaluation = evaluate(
            *(truth, detections, task),
            engine=self._engine,
            max_dets=self._max_dets,
            matches=pool,
        )
        fractions = evaluation.metrics()
        if "AR" in self._extra:
            fractions.update(evaluation.group_recall())
        else:
            fractions = {k: v for k, v in fractions.items() if not k.startswith("AR")}
        if "fixed" in self._extra:
            fractions.update(fixed_ap(truth, detections, task, engine=self._engine))
        if pool:
            fractions.update(pooled_ap(evaluation))
        if self._per_category and not prefix:
            self._write_per_category(task, evaluation)
        metrics = {name: 100 * value for name, value in fractions.items()}
        counts = evaluation.categories_evaluated()
        logger.info(
            "Evaluation results for %s:\n%s\nCategories evaluated: %s.",
            prefix + task,
            create_small_table(metrics),
            ", ".join(f"{counts[n]} {label}" for n, label in truth.groups.named()),
        )
        return metrics

    def _write_per_category(self, task: str, evaluation: Evaluation) -> None:
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, f"{task}_per_category.csv")
        rows = evaluation.per_category()
        with PathManager.open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        logger.info("Wrote the AP of each category to %s", path)


def category_ids(metadata: Metadata) -> np.ndarray:
    """(K,) the dataset's category id of each class of a model."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if contiguous is None:  # detectron2's own LVIS datasets
        return np.arange(1, len(metadata.thing_classes) + 1)
    return np.array(sorted(contiguous, key=contiguous.get), np.int64)
