"""LVIS evaluation with lvis-api, the reference for other engines."""

import logging
from collections import defaultdict
from types import FunctionType, SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util

from ..errors import MissingPackageError, UserError
from .detections import Detections
from .ground_truth import GroundTruth
from .result import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, Matches

_handlers = logging.root.handlers[:]
try:
    from lvis import LVIS, LVISEval, LVISResults
except ImportError as error:
    raise MissingPackageError(
        f"LVIS evaluation needs lvis-api ({error}). Run: pip install --no-deps lvis==0.5.3"
    ) from error
finally:
    logging.root.handlers[:] = _handlers  # lvis-api configures the root logger


def run(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: int | None,
    max_dets_per_category: int | None,
    matches: bool,
) -> tuple[np.ndarray, np.ndarray, Matches | None]:
    """Evaluate with lvis-api (Gupta, Dollár and Girshick, CVPR 2019).

    The arguments are those of :func:`apa_det.evaluation.evaluate`. Matching, accumulation and the
    detection limit per image are lvis-api's own code.

    Returns:
        ``precision``, ``recall`` and ``matches`` of :class:`apa_det.evaluation.Evaluation`.
    """
    if iou_type == "boundary":
        raise UserError("iou_type 'boundary' needs engine 'fast': lvis-api does not support it.")
    limit = -1 if max_dets is None else max_dets
    index = _GroundTruth(truth, with_masks=iou_type == "segm")
    records = _records(detections, iou_type, max_dets_per_category)
    evaluation = _Evaluation(index, _Detections(index, records, limit), iou_type)
    evaluation.params.max_dets = limit
    evaluation.evaluate()
    evaluation.accumulate()
    curves = evaluation.eval["precision"], evaluation.eval["recall"]
    return *curves, _matches(evaluation, truth) if matches else None


class _GroundTruth(LVIS):
    """lvis-api's index of ground truth in memory.

    Annotation ids start at 1, because lvis-api treats a match with id 0 as no match.
    """

    def __init__(self, truth: GroundTruth, with_masks: bool):
        self._with_masks = with_masks
        super().__init__(truth)

    def _load_json(self, truth: GroundTruth) -> dict:
        columns = {
            "image_id": truth.image_ids[truth.annotation_images].tolist(),
            "category_id": truth.category_ids[truth.annotation_categories].tolist(),
            "bbox": truth.boxes.tolist(),
            "area": truth.areas.tolist(),
            "ignore": truth.ignore.astype(int).tolist(),
        }
        if self._with_masks:
            columns["segmentation"] = truth.segmentations
        rows = zip(*columns.values(), strict=True)
        not_exhaustive = _by_image(truth, truth.not_exhaustive)
        if truth.verified is None:
            everywhere = frozenset(truth.category_ids.tolist())  # shared by all images
            verified = defaultdict(lambda: everywhere)
        else:
            verified = _by_image(truth, truth.verified)
        return {
            "images": [
                {
                    "id": image_id,
                    "height": height,
                    "width": width,
                    "neg_category_ids": verified[image_id],
                    "not_exhaustive_category_ids": not_exhaustive[image_id],
                }
                for image_id, (height, width) in zip(
                    truth.image_ids.tolist(), truth.image_sizes.tolist(), strict=True
                )
            ],
            # A dummy: metrics by frequency group are computed from the precision.
            "categories": [{"id": i, "frequency": "f"} for i in truth.category_ids.tolist()],
            "annotations": [
                {**dict(zip(columns, row, strict=True)), "id": i} for i, row in enumerate(rows, 1)
            ],
        }


def _by_image(truth: GroundTruth, pairs: np.ndarray) -> defaultdict[int, set[int]]:
    images, categories = np.divmod(pairs, len(truth.category_ids))
    sets = defaultdict(set)
    for image_id, category_id in zip(
        truth.image_ids[images].tolist(), truth.category_ids[categories].tolist(), strict=True
    ):
        sets[image_id].add(category_id)
    return sets


def _records(detections: Detections, iou_type: str, max_dets_per_category: int | None) -> list:
    """Return LVIS results with ``area``, and with the index of the detection + 1 as ``id``."""
    columns = {
        "id": range(1, len(detections) + 1),
        "image_id": detections.image_ids.tolist(),
        "category_id": detections.category_ids.tolist(),
        "score": detections.scores.tolist(),
    }
    if iou_type == "bbox":
        columns["bbox"] = detections.boxes.tolist()
        columns["area"] = [width * height for _, _, width, height in columns["bbox"]]
    else:
        columns["segmentation"] = detections.masks.rles()
        columns["area"] = [mask_util.area(rle) for rle in columns["segmentation"]]
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if max_dets_per_category is None:
        return records
    by_category = defaultdict(list)
    for record in records:
        by_category[record["category_id"]].append(record)
    kept = [
        record
        for group in by_category.values()
        for record in sorted(group, key=lambda r: -r["score"])[:max_dets_per_category]
    ]
    return sorted(kept, key=lambda r: r["id"])


class _Detections(LVISResults):
    """lvis-api's index of detections, which may be empty."""

    def __init__(self, truth: LVIS, records: list[dict], max_dets: int):
        self.logger = truth.logger
        if max_dets >= 0:
            records = self.limit_dets_per_image(records, max_dets)
        self.dataset = {**truth.dataset, "annotations": records}
        self._create_index()


def _with_np_float(method: FunctionType) -> FunctionType:
    """Return the method with ``np.float``, removed in NumPy 1.24, in its globals."""
    numpy = SimpleNamespace(**{**vars(np), "float": float})
    return FunctionType(method.__code__, {**method.__globals__, "np": numpy}, method.__name__)


class _Evaluation(LVISEval):
    accumulate = _with_np_float(LVISEval.accumulate)


def _matches(evaluation: LVISEval, truth: GroundTruth) -> Matches:
    areas = len(evaluation.params.area_rng)
    images = len(evaluation.params.img_ids)
    entries = [
        entry
        for start in range(0, len(evaluation.eval_imgs), areas * images)
        for entry in evaluation.eval_imgs[start : start + images]  # those of area "all"
        if entry is not None and entry["dt_ids"]
    ]
    entries.sort(key=lambda entry: (entry["image_id"], entry["category_id"]))
    thresholds = len(evaluation.params.iou_thrs)
    ids = np.array([i for e in entries for i in e["dt_ids"]], np.int64)
    matches = np.concatenate([e["dt_matches"] for e in entries] or [np.empty((thresholds, 0))], 1)
    ignored = np.concatenate([e["dt_ignore"] for e in entries] or [np.empty((thresholds, 0))], 1)
    outcomes = np.where(matches > 0, TRUE_POSITIVE, FALSE_POSITIVE)
    annotations = matches[0].astype(np.int64) - 1
    matched = np.zeros(len(truth.annotation_ids), bool)
    matched[annotations[annotations >= 0]] = True
    return Matches(
        detections=ids - 1,
        outcomes=np.where(ignored.astype(bool), IGNORED, outcomes).T.astype(np.uint8),
        annotations=annotations,
        ious=np.array([iou for e in entries for iou in _ious(evaluation, e)], np.float64),
        matched=matched,
    )


def _ious(evaluation: LVISEval, entry: dict) -> list[float]:
    """Return the IoU of each detection with its match at the lowest threshold, or 0."""
    key = entry["image_id"], entry["category_id"]
    columns = {annotation["id"]: i for i, annotation in enumerate(evaluation._gts[key])}
    return [
        evaluation.ious[key][row, columns[int(match)]] if match else 0.0
        for row, match in enumerate(entry["dt_matches"][0])
    ]
