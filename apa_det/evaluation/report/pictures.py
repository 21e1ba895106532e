"""Pictures with what is missed in them beside what is detected."""

import logging
import os
from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from ...data.lvis_format import relative_file_name
from ...utils.plotting import DPI, GREY, label
from ..detections import Detections
from ..ground_truth import GroundTruth
from ..misses import PictureResults
from ..result import FALSE_POSITIVE, TRUE_POSITIVE
from ..side_by_side import Comparison

__all__ = ["FOUND", "MISSED", "WRONG", "draw_misses"]

logger = logging.getLogger(__name__)

FOUND, MISSED, WRONG = "#56b4e9", "#d55e00", "#f0e442"
_INCHES = 11  # width of a figure
_COLUMNS = 3


def draw_misses(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """
    Draw the pictures that the comparison keeps: the ground truth, then each file's detections.

    Yields:
        A caption, and the figure. A picture that cannot be read is left out, with a log line.
    """
    truth = comparison.ground_truth
    width = _INCHES * DPI / min(1 + len(comparison.files), _COLUMNS)
    for results in zip(*(file.pictures for file in comparison.files), strict=True):
        name = relative_file_name(results[0].image)
        try:
            image = read_image(os.path.join(comparison.image_root, name), "RGB")
        except OSError as error:
            logger.warning("%s is left out of the report: %s", name, error)
            continue
        panels = [("ground truth", _draw_ground_truth(image, width, truth, results[0]))]
        for file, result in zip(comparison.files, results, strict=True):
            panels.append((label(file.name), _draw_detections(image, width, truth, result)))
        yield _caption(name, comparison, results), _figure(panels)


def _caption(name: str, comparison: Comparison, results: tuple[PictureResults, ...]) -> str:
    missed = [int((~result.found).sum()) for result in results]
    objects = f"of {len(results[0].found)} objects"
    if len(missed) == 1:
        return f"{name}: {missed[0]} {objects} missed"
    files = zip(comparison.files, missed, strict=True)
    return f"{name}: missed {objects}: " + ", ".join(f"{f.name} {n}" for f, n in files)


def _figure(panels: list[tuple[str, np.ndarray]]) -> Figure:
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    height, width = panels[0][1].shape[:2]
    size = _INCHES / columns
    figure = Figure(figsize=(_INCHES, rows * (size * height / width + 0.3)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, picture) in zip(axes.flat, panels, strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
    return figure


def _draw_ground_truth(
    image: np.ndarray, width: float, truth: GroundTruth, result: PictureResults
) -> np.ndarray:
    rows = result.annotations
    names = [  # only of what is missed
        "" if found else label(truth.category_names[truth.annotation_categories[row]])
        for row, found in zip(rows, result.found, strict=True)
    ]
    masks = None
    if truth.segmentations is not None:
        masks = [_drawable(truth.segmentations[row]) for row in rows]
    colours = [FOUND if found else MISSED for found in result.found]
    return _overlay(image, width, truth.boxes[rows], masks, names, colours)


def _draw_detections(
    image: np.ndarray, width: float, truth: GroundTruth, result: PictureResults
) -> np.ndarray:
    found = result.detections
    places = np.searchsorted(truth.category_ids, found.category_ids)
    names = [
        f"{label(truth.category_names[place])} {score:.2f}"
        for place, score in zip(places, found.scores, strict=True)
    ]
    by_outcome = {TRUE_POSITIVE: FOUND, FALSE_POSITIVE: WRONG}
    colours = [by_outcome.get(outcome, GREY) for outcome in result.outcomes]
    return _overlay(image, width, found.boxes, _masks(found), names, colours)


def _masks(detections: Detections) -> list[np.ndarray] | None:
    if detections.masks is None:
        return None
    return [mask_util.decode(rle) for rle in detections.masks.rles()]


def _drawable(segmentation: list | dict) -> list | np.ndarray:
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        return mask_util.decode(segmentation)
    return segmentation


def _overlay(
    image: np.ndarray,
    width: float,
    boxes: np.ndarray | None,
    masks: list | None,
    names: list[str],
    colours: list[str],
) -> np.ndarray:
    """Masks where there are any, else boxes (XYWH), on the picture brought to a width in pixels."""
    visualizer = Visualizer(image, scale=width / image.shape[1])
    if names:
        corners = None if masks is not None else boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0)))
        visualizer.overlay_instances(
            boxes=corners, masks=masks, labels=names, assigned_colors=colours, alpha=0.35
        )
    return visualizer.output.get_image()
