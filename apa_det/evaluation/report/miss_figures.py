"""Figures of images with their missed objects and the detections."""

import logging
import os
from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util
from matplotlib.figure import Figure

from ...data.image_files import read_image
from ...data.image_names import relative_file_name
from ...data.records import to_rle
from ...errors import UserError
from ...utils.annotated_image import draw_instances, image_grid
from ...utils.plotting import DPI, FALSE_POSITIVE_COLOR, GREY, MISSED_COLOR
from ...utils.plotting import TRUE_POSITIVE_COLOR as DETECTED_COLOR
from ..comparison import Comparison
from ..ground_truth import GroundTruth
from ..misses import ImageResults
from ..result import FALSE_POSITIVE, TRUE_POSITIVE

logger = logging.getLogger(__name__)

_INCHES = 11  # width of a figure
_COLUMNS = 3
_TEXT = 15  # pixels
_LEGEND = (
    (MISSED_COLOR, "missed object"),
    (DETECTED_COLOR, "detected object, or true positive"),
    (FALSE_POSITIVE_COLOR, "false positive"),
    (GREY, "ignored by the metric"),
)


def draw_misses(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Draw the comparison's worst images: ground truth, then each file's detections.

    Yields:
        The caption and the figure of each image. Unreadable images are skipped with a warning.
    """
    truth = comparison.ground_truth
    width = _INCHES * DPI / min(1 + len(comparison.files), _COLUMNS)
    for results in zip(*(file.worst_images for file in comparison.files), strict=True):
        name = relative_file_name(results[0].record)
        try:
            image = read_image(os.path.join(comparison.image_root, name), "RGB")
        except UserError as error:
            logger.warning("%s It is missing from the report.", error)
            continue
        panels = [("ground truth", _draw_ground_truth(image, width, truth, results[0]))]
        for file, result in zip(comparison.files, results, strict=True):
            panels.append((file.name, _draw_detections(image, width, truth, result)))
        yield _caption(name, comparison, results), _figure(panels)


def _caption(name: str, comparison: Comparison, results: tuple[ImageResults, ...]) -> str:
    missed = [int((~result.matched).sum()) for result in results]
    counts = str(missed[0])
    if len(missed) > 1:
        files = zip(comparison.files, missed, strict=True)
        counts = ", ".join(f"{n} by {f.name}" for f, n in files)
    return f"{name}: {len(results[0].matched)} objects, missed: {counts}"


def _figure(panels: list[tuple[str, np.ndarray]]) -> Figure:
    titles, images = zip(*panels, strict=True)
    columns = min(len(panels), _COLUMNS)
    pixels = image_grid(images, columns, titles=titles, legend=_LEGEND, font_size=_TEXT)
    figure = Figure(figsize=(pixels.shape[1] / DPI, pixels.shape[0] / DPI), dpi=DPI)
    figure.figimage(pixels)
    return figure


def _draw_ground_truth(
    image: np.ndarray, width: float, truth: GroundTruth, result: ImageResults
) -> np.ndarray:
    rows = result.annotations
    names = [  # only missed objects are named
        "" if matched else truth.category_names[truth.annotation_categories[row]]
        for row, matched in zip(rows, result.matched, strict=True)
    ]
    shapes, size = truth.segmentations, image.shape[:2]
    masks = None if shapes is None else [_mask(shapes[row], *size) for row in rows]
    colors = [DETECTED_COLOR if matched else MISSED_COLOR for matched in result.matched]
    return _overlay(image, width, truth.boxes[rows], masks, names, colors)


def _draw_detections(
    image: np.ndarray, width: float, truth: GroundTruth, result: ImageResults
) -> np.ndarray:
    detections = result.detections
    categories = np.searchsorted(truth.category_ids, detections.category_ids)
    names = [
        f"{truth.category_names[category]} {score:.2f}"
        for category, score in zip(categories, detections.scores, strict=True)
    ]
    by_outcome = {TRUE_POSITIVE: DETECTED_COLOR, FALSE_POSITIVE: FALSE_POSITIVE_COLOR}
    colors = [by_outcome.get(outcome, GREY) for outcome in result.outcomes]
    masks = None
    if detections.masks is not None:
        masks = [mask_util.decode(rle) for rle in detections.masks.rles()]
    return _overlay(image, width, detections.boxes, masks, names, colors)


def _mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    return mask_util.decode(to_rle(segmentation, height, width)).astype(bool)


def _overlay(
    image: np.ndarray,
    width: float,
    boxes: np.ndarray,
    masks: list | None,
    names: list[str],
    colors: list[str],
) -> np.ndarray:
    """Draw boxes (XYWH) and masks on the image scaled to a width in pixels."""
    corners = boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0)))
    size = round(width * max(image.shape[:2]) / image.shape[1])
    style = {"masks": masks, "size": size, "font_size": _TEXT}
    return draw_instances(image, corners, names, colors, **style)
