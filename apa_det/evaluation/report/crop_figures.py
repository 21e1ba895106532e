"""Figures of image crops: false positives with high scores, and examples of confusions."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from ...data.image_files import read_image
from ...data.image_names import relative_file_name
from ...errors import UserError
from ...utils.plotting import group_color, label
from ..comparison import Comparison, FileResults
from ..confusions import Confusion
from ..false_positives import FalsePositive
from ..ground_truth import GroundTruth
from .error_charts import worst_confusions
from .miss_figures import DETECTED_COLOR, FALSE_POSITIVE_COLOR

logger = logging.getLogger(__name__)

_INCHES = 11  # width of a figure
_COLUMNS = 4
_TEXT = 0.5  # height of the text of a row, inches
_CONTEXT = 1.5  # side of the crop in sizes of the boxes
_MIN_SIDE = 64  # pixels of a crop
_STYLES = (FALSE_POSITIVE_COLOR, "-"), (DETECTED_COLOR, "--")
_EXPLANATIONS = {
    "class": "is {name}",
    "location": "IoU {iou:.2f} with the object",
    "both": "is {name}, IoU {iou:.2f}",
    "duplicate": "another detection has it",
    "background": "no annotated object here",
    "other": "no mask of this category here",
}


@dataclass(frozen=True)
class _Crop:
    record: dict  # of the image
    box: tuple[float, float, float, float]  # of the detection, XYWH
    annotated: np.ndarray | None  # box of the annotation, XYWH
    group: int
    lines: tuple[str, str]


def draw_false_positives(comparison: Comparison, file: FileResults) -> Figure | None:
    """Draw a file's false positives with the highest scores; None if there are none to draw.

    Boxes are drawn if they were evaluated, else masks. A row per frequency group. Unreadable images
    are skipped with a warning.
    """
    truth = comparison.ground_truth
    found = next((a.false_positives for a in file.analyses().values()), [])
    crops = [_of_false_positive(truth, false_positive) for false_positive in found]
    return _figure(comparison, crops, "false positive", by_group=True)


def draw_confusions(comparison: Comparison, file: FileResults) -> Figure | None:
    """Draw the object with the highest score of each of a file's worst confusions.

    None if there are none to draw. Unreadable images are skipped with a warning.
    """
    truth = comparison.ground_truth
    crops = [_of_confusion(truth, confusion) for confusion in worst_confusions(truth, file)]
    return _figure(comparison, crops, "detection of another category")


def _of_false_positive(truth: GroundTruth, found: FalsePositive) -> _Crop:
    annotated, of_object = None, ""
    if found.annotation >= 0:
        annotated = truth.boxes[found.annotation]
        of_object = truth.category_names[truth.annotation_categories[found.annotation]]
    reason = _EXPLANATIONS[found.error].format(name=label(of_object), iou=found.iou)
    name = label(truth.category_names[found.category])
    lines = f"{name} {found.score:.2f}", f"{found.error}: {reason}"
    group = int(truth.category_groups[found.category])
    return _Crop(found.record, found.box, annotated, group, lines)


def _of_confusion(truth: GroundTruth, found: Confusion) -> _Crop:
    image = truth.images[truth.annotation_images[found.annotation]]
    name = label(truth.category_names[found.category])
    other = label(truth.category_names[found.taken_for])
    group = int(truth.category_groups[found.category])
    lines = f"{name}", f"taken for {other} {found.score:.2f}"
    return _Crop(image, found.box, truth.boxes[found.annotation], group, lines)


def _figure(
    comparison: Comparison, crops: Iterable[_Crop], of_detection: str, by_group: bool = False
) -> Figure | None:
    drawn = []
    for crop in crops:
        name = relative_file_name(crop.record)
        try:
            drawn.append((crop, read_image(os.path.join(comparison.image_root, name), "RGB")))
        except UserError as error:
            logger.warning("%s It is missing from the report.", error)
    if not drawn:
        return None
    rows = [drawn]
    if by_group:
        groups = dict.fromkeys(crop.group for crop, _ in drawn)
        rows = [[pair for pair in drawn if pair[0].group == group] for group in groups]
    rows = [row[i : i + _COLUMNS] for row in rows for i in range(0, len(row), _COLUMNS)]
    width = _INCHES / _COLUMNS
    figure = Figure(figsize=(_INCHES, len(rows) * (width + _TEXT) + _TEXT))
    axes = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    unit = 1 / figure.get_figheight()
    edges = {"bottom": _TEXT * unit, "top": 1 - _TEXT * unit, "left": 0.01, "right": 0.99}
    figure.subplots_adjust(**edges, wspace=0.04, hspace=_TEXT / width)
    for axis in axes.flat:
        axis.set_axis_off()
    for axes_of_row, row in zip(axes, rows, strict=True):
        for axis, (crop, image) in zip(axes_of_row, row, strict=False):
            _draw(axis, crop, image)
    style = {"fill": False, "linewidth": 2}
    handles = [
        Patch(edgecolor=color, linestyle=line, label=text, **style)
        for (color, line), text in zip(_STYLES, (of_detection, "the object"), strict=True)
    ]
    legend = figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False)
    for patch in legend.get_patches():  # as in the image: readable on white
        patch.set_path_effects([withStroke(linewidth=4, foreground="black")])
    return figure


def _draw(axis: Axes, crop: _Crop, image: np.ndarray) -> None:
    boxes = [crop.box] if crop.annotated is None else [crop.box, crop.annotated]
    left, top, right, bottom = _window(np.array(boxes), *image.shape[:2])
    edges = {"extent": (left, right, bottom, top), "interpolation": "bilinear"}
    axis.imshow(image[top:bottom, left:right], **edges)
    for (x, y, width, height), (color, line) in zip(boxes, _STYLES, strict=False):
        for ink, thickness in (("black", 4), (color, 2)):  # readable on any color
            style = {"edgecolor": ink, "linewidth": thickness, "linestyle": line, "fill": False}
            axis.add_patch(Rectangle((x, y), width, height, **style))
    axis.set(xlim=(left, right), ylim=(bottom, top))
    style = {"ha": "center", "va": "bottom", "transform": axis.transAxes}
    first, second = crop.lines
    bold = {"color": group_color(crop.group), "fontweight": "bold", "fontsize": 9}
    axis.text(0.5, 1.09, first, **bold, **style)
    axis.text(0.5, 1.02, second, fontsize=8, **style)


def _window(boxes: np.ndarray, height: int, width: int) -> Sequence[int]:
    """Return left, top, right and bottom of a square around boxes, moved into the image."""
    low, high = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    side = max(_MIN_SIDE, round(_CONTEXT * (high - low).max()))
    start = [
        int(np.clip(round(middle - side / 2), 0, max(0, size - side)))
        for middle, size in zip((low + high) / 2, (width, height), strict=True)
    ]
    return *start, min(width, start[0] + side), min(height, start[1] + side)
