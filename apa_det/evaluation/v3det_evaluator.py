"""COCO box AP for the many classes of V3Det."""

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table

from ..data import ensure_metadata, read_coco_json
from ..data.class_names import category_ids
from .coco_boxes import coco_box_ap
from .predictions import PredictionStore, detections_from_instances

logger = logging.getLogger(__name__)

_FIELDS = ("pred_boxes", "scores", "pred_classes")


class V3DetEvaluator(DatasetEvaluator):
    """COCO's box AP, AP50, AP75, APs, APm and APl for V3Det.

    The results are those of detectron2's COCOEvaluator with ``max_dets_per_image=300``. That
    evaluator stores a record for each pair of image and class, 394 million for V3Det val, and logs
    the AP of each of the 13,204 classes.

    Args:
        dataset_name: a registered dataset with a COCO-format ``json_file`` in its metadata.
        distributed: gather the predictions of all processes and evaluate in the main process.
        output_dir: the folder for the predictions, ``coco_instances_results.json``. None: do not
            write them.
        max_dets_per_image: evaluate this many detections per image and class, by score.

    Raises:
        UserError: no dataset has this name.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
    ):
        ensure_metadata(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        self._name, self._json_file = dataset_name, metadata.json_file
        self._category_ids = category_ids(metadata)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        self.reset()

    def reset(self) -> None:
        self._predictions = PredictionStore()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Store a model's predictions, see :meth:`LongTailEvaluator.process`."""
        for item, output in zip(inputs, outputs, strict=True):
            instances, image_id = output["instances"], item["image_id"]
            fields = {name: instances.get(name) for name in _FIELDS}
            boxes = Instances(instances.image_size, **fields)  # without masks
            detections = detections_from_instances(boxes, image_id, self._category_ids)
            self._predictions.add(image_id, detections)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> OrderedDict:
        """Compute the metrics of all predictions since the last reset.

        Args:
            img_ids: evaluate only these images. None: all.

        Returns:
            The metrics as ``{"bbox": ...}`` in percent; NaN without ground truth. Empty in all
            processes but the main one, and for a dataset without annotations.
        """
        gathered = self._predictions.gather(self._distributed)
        if gathered is None:
            return OrderedDict()
        detections, _ = gathered
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            detections.write(path)
            logger.info("Wrote the predictions to %s", path)
        annotations = read_coco_json(self._json_file)["annotations"]
        if not annotations:
            logger.info("%s has no ground truth: no metrics are computed.", self._name)
            return OrderedDict()
        if img_ids is not None:
            chosen = set(img_ids)
            annotations = [a for a in annotations if a["image_id"] in chosen]
            detections = detections.select(np.isin(detections.image_ids, list(chosen)))
        logger.info("Evaluating box AP: %d detections ...", len(detections))
        results = coco_box_ap(annotations, detections, self._max_dets)
        logger.info("Evaluation results for bbox:\n%s", create_small_table(results))
        return OrderedDict(bbox=results)
