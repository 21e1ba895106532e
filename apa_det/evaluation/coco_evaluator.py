"""detectron2's COCOEvaluator, whose log stays short for many classes."""

import logging
from collections.abc import Sequence

import numpy as np
from detectron2 import evaluation
from pycocotools.cocoeval import COCOeval

from ..data.class_histogram import MAX_LISTED, extremes_table

logger = logging.getLogger(__name__)


class COCOEvaluator(evaluation.COCOEvaluator):
    """Evaluates by COCO's metrics; the results are detectron2's.

    For more than 100 classes, it logs the classes with the highest and the lowest AP, not all.
    """

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is None or class_names is None or len(class_names) <= MAX_LISTED:
            return super()._derive_coco_results(coco_eval, iou_type, class_names)
        results = super()._derive_coco_results(coco_eval, iou_type)  # without classes
        precision = coco_eval.eval["precision"][..., 0, -1]  # (T, R, K) over all areas
        defined = precision[0, 0] > -1  # the class has ground truth
        aps = np.where(defined, 100 * precision.mean(axis=(0, 1)), np.nan)
        if defined.any():
            table = extremes_table(class_names, aps, "AP", "{:.3f}")
            without = len(class_names) - defined.sum()
            text = "Per-category %s AP (%d classes have no ground truth):\n%s"
            logger.info(text, iou_type, without, table)
        return {
            **results,
            **{f"AP-{n}": ap for n, ap in zip(class_names, aps.tolist(), strict=True)},
        }
