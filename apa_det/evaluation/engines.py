"""Evaluation of detections in memory, by one of two engines."""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth
from .result import Evaluation
from .selection import find

__all__ = ["ENGINES", "IOU_TYPES", "evaluate", "load_engine"]

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
        ground_truth: what to hold the detections against.
        detections: with boxes or masks, as ``iou_type`` needs.
        iou_type: "bbox", "segm", or "boundary" (the lesser of mask IoU and boundary IoU: Cheng et
            al., CVPR 2021; the fast engine only). The size of a detection is the area of its box
            for "bbox", of its mask else.
        engine: "fast" (ultrafast-pycocotools) or "lvis" (lvis-api, the reference). Where the fast
            one is not installed the other is used: it gives the same numbers.
        max_dets: the detections with the highest scores that count for each picture. None: all.
        max_dets_per_category: the same for each category over the whole dataset.
        matches: keep which detection found what, too.

    Raises:
        ValueError: a detection is of an unknown picture or category, has a score or box that is not
            finite, has a mask of another picture's size, or lacks what ``iou_type`` needs; or
            another argument is none of its choices.
        ImportError: the engine is not installed, and there is no other for it.
    """
    _check(ground_truth, detections, iou_type)
    engine = load_engine(engine, iou_type)
    precision, recall, found = engine.run(
        ground_truth, detections, iou_type, max_dets, max_dets_per_category, matches
    )
    of_matches = {}
    if found is not None:
        ids = detections.category_ids[found.detections]
        of_matches = {
            "matches": found,
            "scores": detections.scores[found.detections],
            "match_categories": find(ids, ground_truth.category_ids),
            "match_images": find(detections.image_ids[found.detections], ground_truth.image_ids),
        }
    return Evaluation(
        ground_truth,
        iou_type,
        engine.__name__.rpartition(".")[2].removesuffix("_engine"),
        max_dets,
        precision,
        recall,
        **of_matches,
    )


def load_engine(name: str, iou_type: str = "bbox") -> ModuleType:
    """The module of an engine; lvis-api's where the fast one is not installed.

    Raises:
        ValueError: there is no engine of that name.
        ImportError: it is not installed; for "fast", neither of them is.
    """
    if name not in ENGINES:
        raise ValueError(f"The evaluation engines are {' and '.join(ENGINES)}, not {name}.")
    if name == "fast":
        try:
            return import_module("apa_det.evaluation.fast_engine")
        except ImportError as error:
            if iou_type == "boundary":
                raise
            _log_fallback(str(error))
    return import_module("apa_det.evaluation.lvis_engine")


@cache  # once is enough
def _log_fallback(reason: str) -> None:
    logger.info("%s. Until then lvis-api evaluates: the same numbers, more slowly.", reason)


def _check(truth: GroundTruth, detections: Detections, iou_type: str) -> None:
    if iou_type not in IOU_TYPES:
        raise ValueError(f"The IoU types are {', '.join(IOU_TYPES)}, not {iou_type}.")
    kind = "boxes" if iou_type == "bbox" else "masks"
    if (detections.boxes if iou_type == "bbox" else detections.masks) is None:
        raise ValueError(f"{iou_type} AP needs {kind}, but the detections have none.")
    if iou_type != "bbox" and truth.segmentations is None:
        raise ValueError(f"{iou_type} AP needs masks, but the ground truth has none.")
    images = find(detections.image_ids, truth.image_ids)
    categories = find(detections.category_ids, truth.category_ids)
    for noun, ids, places in (
        ("picture", detections.image_ids, images),
        ("category", detections.category_ids, categories),
    ):
        _raise_first(
            places < 0, lambda i, n=noun, ids=ids: f"is of {n} {ids[i]}, which the dataset lacks"
        )
    scores, boxes, masks = detections.scores, detections.boxes, detections.masks
    _raise_first(~np.isfinite(scores), lambda i: f"has the score {scores[i]}, no finite number")
    if iou_type == "bbox":
        _raise_first(
            ~np.isfinite(boxes).all(1), lambda i: f"has the box {boxes[i].tolist()}, not finite"
        )
    else:
        sizes = truth.image_sizes[images]
        _raise_first(
            (masks.sizes != sizes).any(1),
            lambda i: (
                f"has a mask of size {masks.sizes[i].tolist()} (height, width) in a picture "
                f"of size {sizes[i].tolist()}"
            ),
        )


def _raise_first(broken: np.ndarray, message: Callable[[int], str]) -> None:
    if broken.any():
        first = int(np.argmax(broken))
        raise ValueError(
            f"{broken.sum()} detections cannot be evaluated: detection {first} (from 0) "
            f"{message(first)}."
        )
