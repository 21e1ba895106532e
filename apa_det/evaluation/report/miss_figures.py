"""Figures of images with their missed objects and the detections."""

import logging
import os
from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from ...data.image_files import read_image
from ...data.image_names import relative_file_name
from ...data.records import to_rle
from ...errors import UserError
from ...utils.plotting import DPI, GREY, label
from ..comparison import Comparison
from ..ground_truth import GroundTruth
from ..misses import ImageResults
from ..result import FALSE_POSITIVE, TRUE_POSITIVE

logger = logging.getLogger(__name__)

DETECTED_COLOR, MISSED_COLOR, FALSE_POSITIVE_COLOR = "#56b4e9", "#d55e00", "#f0e442"
_INCHES = 11  # width of a figure
_COLUMNS = 3


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
            panels.append((label(file.name), _draw_detections(image, width, truth, result)))
        yield _caption(name, comparison, results), _figure(panels)


def _caption(name: str, comparison: Comparison, results: tuple[ImageResults, ...]) -> str:
    missed = [int((~result.matched).sum()) for result in results]
    counts = str(missed[0])
    if len(missed) > 1:
        files = zip(comparison.files, missed, strict=True)
        counts = ", ".join(f"{n} by {f.name}" for f, n in files)
    return f"{name}: {len(results[0].matched)} objects, missed: {counts}"


def _figure(panels: list[tuple[str, np.ndarray]]) -> Figure:
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    height, width = panels[0][1].shape[:2]
    size = _INCHES / columns
    figure = Figure(figsize=(_INCHES, rows * (size * height / width + 0.3)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes.flat, panels, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=10)
    return figure


def _draw_ground_truth(
    image: np.ndarray, width: float, truth: GroundTruth, result: ImageResults
) -> np.ndarray:
    rows = result.annotations
    names = [  # only missed objects are named
        "" if matched else label(truth.category_names[truth.annotation_categories[row]])
        for row, matched in zip(rows, result.matched, strict=True)
    ]
    shapes = truth.segmentations
    masks = None if shapes is None else [_drawable(shapes[row]) for row in rows]
    colors = [DETECTED_COLOR if matched else MISSED_COLOR for matched in result.matched]
    return _overlay(image, width, truth.boxes[rows], masks, names, colors)


def _draw_detections(
    image: np.ndarray, width: float, truth: GroundTruth, result: ImageResults
) -> np.ndarray:
    detections = result.detections
    categories = np.searchsorted(truth.category_ids, detections.category_ids)
    names = [
        f"{label(truth.category_names[category])} {score:.2f}"
        for category, score in zip(categories, detections.scores, strict=True)
    ]
    by_outcome = {TRUE_POSITIVE: DETECTED_COLOR, FALSE_POSITIVE: FALSE_POSITIVE_COLOR}
    colors = [by_outcome.get(outcome, GREY) for outcome in result.outcomes]
    masks = None
    if detections.masks is not None:
        masks = [mask_util.decode(rle) for rle in detections.masks.rles()]
    return _overlay(image, width, detections.boxes, masks, names, colors)


def _drawable(segmentation: list | dict) -> list | np.ndarray:
    if isinstance(segmentation, dict):
        return mask_util.decode(to_rle(segmentation, *segmentation["size"]))
    return segmentation


def _overlay(
    image: np.ndarray,
    width: float,
    boxes: np.ndarray | None,
    masks: list | None,
    names: list[str],
    colors: list[str],
) -> np.ndarray:
    """Draw masks, or boxes (XYWH) if masks is None, on the image scaled to a width in pixels."""
    visualizer = Visualizer(image, scale=width / image.shape[1])
    if names:
        corners = None if masks is not None else boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0)))
        style = {"assigned_colors": colors, "alpha": 0.35}
        visualizer.overlay_instances(boxes=corners, masks=masks, labels=names, **style)
    return visualizer.output.get_image()
