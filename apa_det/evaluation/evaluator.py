"""The evaluator for long-tailed detection and instance segmentation: LVIS's metrics."""

import itertools
import json
import logging
import math
import os
from collections import Counter, OrderedDict

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from ..data import complete_categories, ensure_metadata, read_lvis_json

__all__ = ["METRICS", "LongTailEvaluator"]

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class LongTailEvaluator(DatasetEvaluator):
    """Box and mask AP by LVIS's rules, with APr, APc and APf for rare, common and frequent classes.

    It takes what detectron2's ``LVISEvaluator`` takes, for datasets of
    :func:`apa_det.data.register_lvis_format` and for the LVIS names built into detectron2.
    Categories without ``frequency`` get it as :func:`apa_det.data.complete_categories` derives it.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
    ):
        """
        Args:
            dataset_name: a registered dataset whose metadata name the LVIS-format ``json_file``.
            tasks: "bbox", "segm" or both. None: boxes, and masks if the model predicts them.
            distributed: gather the predictions of all processes, and evaluate in the main one;
                else each process evaluates its own.
            output_dir: where to write the predictions, as ``lvis_instances_results.json``. None:
                they are not written.
            max_dets_per_image: the predictions with the highest scores that count for each picture.

        Raises:
            FileNotFoundError, ValueError: the ground truth is missing or broken.
            ImportError: lvis-api is not installed.
        """
        self._name = dataset_name
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        ensure_metadata(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:  # detectron2's own LVIS datasets
            contiguous = {i + 1: i for i in range(len(metadata.thing_classes))}
        self._category_ids = {i: category_id for category_id, i in contiguous.items()}
        if not distributed or comm.is_main_process():
            from . import lvis_engine

            self._engine = lvis_engine
            self._dataset = _read_ground_truth(metadata)
        self.reset()

    def reset(self) -> None:
        self._predictions: dict[int, list[dict]] = {}
        self._has_masks = False

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep a model's predictions, masks as RLE.

        Args:
            inputs: the model's inputs; each names its picture by ``image_id``.
            outputs: its outputs, each with ``instances`` (``pred_boxes``, ``scores``,
                ``pred_classes`` and maybe ``pred_masks``). A picture seen twice counts once.
        """
        for picture, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(torch.device("cpu"))
            self._has_masks |= instances.has("pred_masks")
            image_id = picture["image_id"]
            predictions = instances_to_coco_json(instances, image_id)
            for prediction in predictions:
                prediction["category_id"] = self._category_id(prediction["category_id"])
            self._predictions[image_id] = predictions

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | dict:
        """Compute the metrics from all that was processed since the last reset.

        Returns:
            For each task the nine :data:`METRICS` in percent, NaN for a group without ground truth.
            Empty in every process but the main one, and where the dataset has no annotation.
        """
        gathered = [(self._predictions, self._has_masks)]
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(gathered[0], dst=0)
            if not comm.is_main_process():
                return {}
        by_image = {}
        for part, _ in gathered:
            by_image.update(part)
        has_masks = any(masks for _, masks in gathered)
        if self._tasks and "segm" in self._tasks and by_image and not has_masks:
            raise ValueError("The tasks name segm, but the model predicts no masks.")
        predictions = list(itertools.chain.from_iterable(by_image.values()))
        if self._output_dir:
            self._write(predictions)
        if not self._dataset["annotations"]:
            logger.info("%s has no annotations: there is nothing to evaluate.", self._name)
            return {}
        if not predictions:
            logger.warning("The model detected nothing in %s: its metrics are 0.", self._name)
        return self._compute(predictions, self._tasks or self._default_tasks(has_masks))

    def _category_id(self, predicted_class: int) -> int:
        if predicted_class not in self._category_ids:
            raise ValueError(
                f"The model predicts class {predicted_class} (from 0), but {self._name} has only "
                f"{len(self._category_ids)} classes: the model was built for another dataset."
            )
        return self._category_ids[predicted_class]

    def _write(self, predictions: list[dict]) -> None:
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, "lvis_instances_results.json")
        with PathManager.open(path, "w") as f:
            json.dump(predictions, f)
        logger.info("Wrote the predictions to %s", path)

    def _default_tasks(self, has_masks: bool) -> tuple[str, ...]:
        if not has_masks:
            return ("bbox",)
        if any(annotation.get("segmentation") for annotation in self._dataset["annotations"]):
            return ("bbox", "segm")
        logger.warning("%s has no masks: only boxes are evaluated.", self._name)
        return ("bbox",)

    def _compute(self, predictions: list[dict], tasks: tuple[str, ...]) -> OrderedDict:
        results = OrderedDict()
        for task in tasks:
            logger.info(
                "Evaluating %s AP of %d detections, at most %d for each of %d pictures ...",
                task,
                len(predictions),
                self._max_dets,
                len(self._dataset["images"]),
            )
            fractions = self._engine.evaluate(self._dataset, predictions, task, self._max_dets)
            results[task] = {name: 100 * fractions[name] for name in METRICS}
            table = create_small_table(results[task])
            logger.info("Evaluation results for %s:\n%s\n%s", task, table, self._category_counts())
        undefined = [name for name in METRICS if any(math.isnan(r[name]) for r in results.values())]
        if undefined:
            logger.info(
                "NaN: %s has no ground truth that counts for %s.", self._name, ", ".join(undefined)
            )
        return results

    def _category_counts(self) -> str:
        evaluated = {a["category_id"] for a in self._dataset["annotations"] if not a.get("ignore")}
        counts = Counter(
            category["frequency"]
            for category in self._dataset["categories"]
            if category["id"] in evaluated
        )
        return (
            f"Categories evaluated: {counts['r']} rare, {counts['c']} common, "
            f"{counts['f']} frequent."
        )


def _read_ground_truth(metadata) -> dict:
    dataset = read_lvis_json(metadata.json_file)
    if any(not c.keys() & {"frequency", "image_count"} for c in dataset["categories"]):
        logger.warning(
            "%s has categories with neither frequency nor image_count: APr, APc and APf go by "
            "counts of this very file, not by those of the training set.",
            metadata.json_file,
        )
    complete_categories(dataset, metadata.get("rare_max", 10), metadata.get("common_max", 100))
    return dataset
