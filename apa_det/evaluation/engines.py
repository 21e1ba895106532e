"""Evaluation of detections in memory with one of two engines."""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np

from ..errors import UserError
from ..utils.progress import heartbeat
from .detections import Detections
from .ground_truth import GroundTruth
from .result import Evaluation
from .selection import find

logger = logging.getLogger(__name__)

ENGINES = ("fast", "lvis")
IOU_TYPES = ("bbox", "segm", "boundary")


def evaluate(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    engine: str = "fast",
    max_dets: int | None = 300,
    max_dets_per_category: int | None = None,
    matches: bool = False,
) -> Evaluation:
    """Evaluate detections by the rules of LVIS (Gupta, Dollár and Girshick, CVPR 2019).

    Args:
        ground_truth: the ground truth.
        detections: with boxes for "bbox", with masks otherwise.
        iou_type: "bbox", "segm", or "boundary" (minimum of mask IoU and boundary IoU, Cheng et al.,
            CVPR 2021; fast engine only). The size of a detection is its box area for "bbox" and its
            mask area otherwise.
        engine: "fast" (ultrafast-pycocotools) or "lvis" (lvis-api, the reference). If the fast
            engine is not installed, lvis-api is used, with the same results.
        max_dets: evaluate this many detections per image, by score. None: all.
        max_dets_per_category: evaluate this many detections per category over the whole dataset,
            by score. None: all.
        matches: also return which detection matches which annotation.

    Raises:
        UserError: a detection has an unknown image or category, a score or box that is not finite,
            or a mask whose size is not that of its image; boxes or masks for ``iou_type`` are
            missing; or an argument is invalid.
        MissingPackageError: no engine for ``iou_type`` is installed.
    """
    _check(ground_truth, detections, iou_type)
    engine = load_engine(engine, iou_type)
    with heartbeat(f"Evaluating {iou_type} AP of {len(detections):,} detections"):
        precision, recall, matched = engine.run(
            ground_truth, detections, iou_type, max_dets, max_dets_per_category, matches
        )
    match_columns = {}
    if matched is not None:
        rows = matched.detections
        match_columns = {
            "matches": matched,
            "scores": detections.scores[rows],
            "match_categories": find(detections.category_ids[rows], ground_truth.category_ids),
            "match_images": find(detections.image_ids[rows], ground_truth.image_ids),
        }
    return Evaluation(
        ground_truth,
        iou_type,
        engine.__name__.rpartition(".")[2].removesuffix("_engine"),
        max_dets,
        precision,
        recall,
        **match_columns,
    )


def load_engine(name: str, iou_type: str = "bbox") -> ModuleType:
    """Import an engine; fall back to lvis-api if the fast engine is not installed.

    Raises:
        UserError: ``name`` is not an engine.
        MissingPackageError: neither the engine nor a fallback for ``iou_type`` is installed.
    """
    if name not in ENGINES:
        raise UserError(f"The evaluation engine must be one of {', '.join(ENGINES)}; got {name!r}.")
    if name == "fast":
        try:
            return import_module("apa_det.evaluation.fast_engine")
        except ImportError as error:
            if iou_type == "boundary":
                raise
            _log_fallback(str(error))
    return import_module("apa_det.evaluation.lvis_engine")


@cache  # log once
def _log_fallback(reason: str) -> None:
    logger.info("%s. Using lvis-api instead: same results, but slower.", reason)


def _check(truth: GroundTruth, detections: Detections, iou_type: str) -> None:
    if iou_type not in IOU_TYPES:
        raise UserError(f"iou_type must be one of {', '.join(IOU_TYPES)}; got {iou_type!r}.")
    kind = "boxes" if iou_type == "bbox" else "masks"
    if (detections.boxes if iou_type == "bbox" else detections.masks) is None:
        raise UserError(f"{iou_type} AP needs {kind}, but the detections have none.")
    if iou_type != "bbox" and truth.segmentations is None:
        raise UserError(f"{iou_type} AP needs masks, but the ground truth has none.")
    images = find(detections.image_ids, truth.image_ids)
    categories = find(detections.category_ids, truth.category_ids)
    for key, ids, indices in (
        ("image_id", detections.image_ids, images),
        ("category_id", detections.category_ids, categories),
    ):
        _raise_first(
            indices < 0, lambda i, k=key, ids=ids: f"has unknown {k} {ids[i]}, not in the dataset"
        )
    scores, boxes, masks = detections.scores, detections.boxes, detections.masks
    _raise_first(~np.isfinite(scores), lambda i: f"has score {scores[i]}, which is not finite")
    if iou_type == "bbox":
        _raise_first(
            ~np.isfinite(boxes).all(1),
            lambda i: f"has box {boxes[i].tolist()}, which is not finite",
        )
    else:
        sizes = truth.image_sizes[images]
        _raise_first(
            (masks.sizes != sizes).any(1),
            lambda i: (
                f"has a mask of size {masks.sizes[i].tolist()} (height, width) in an image of size "
                f"{sizes[i].tolist()}"
            ),
        )


def _raise_first(broken: np.ndarray, message: Callable[[int], str]) -> None:
    if broken.any():
        first = int(np.argmax(broken))
        raise UserError(
            f"{broken.sum()} detections are invalid: detection {first} (from 0) {message(first)}."
        )
