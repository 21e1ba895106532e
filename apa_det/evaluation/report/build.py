"""Writing the report: figures, tables, and the page that shows them."""

import csv
import io
import math
import os
from pathlib import Path

from matplotlib.figure import Figure

from ...utils.json_files import write_json
from ...utils.plotting import DPI
from ..side_by_side import Comparison
from . import charts
from .page import KINDS, Picture, Section, render
from .pictures import draw_misses

__all__ = ["write_report"]

_CHANCE = (
    "With few of them AP is much a matter of chance; where there are categories enough, those with "
    "fewer than 5 objects are left out."
)
_FIGURES = (
    (
        charts.ap_by_image_count,
        "AP by image count",
        "Each dot is a category, at the number of training pictures that hold it; the line is the "
        "mean of categories with like counts. The further the line falls towards the left, the "
        "more the long tail costs.",
    ),
    (
        charts.differences,
        "Difference to {first}",
        "Each dot is a category, above zero where it gains; the line is the mean of categories "
        "with like image counts. On the right, in brackets: objects in the ground truth. "
        + _CHANCE,
    ),
    (
        charts.precision_recall,
        "Precision and recall by group",
        "In percent, averaged over the categories of the group. Solid: averaged over IoU 0.5 to "
        "0.95 too, so that the area below the curve is the group's AP. Dashed: IoU 0.5 alone. "
        "Where a curve comes to zero, no category finds more of its objects.",
    ),
    (
        charts.calibration,
        "Are the scores to be trusted?",
        "Detections by score, and the part of them that is right at IoU 0.5. On the dotted line, "
        "a score of 0.7 is right in 70% of cases; below it scores are too high, above it too low. "
        "Only detections that the metric judges are counted. Hollow: fewer than 10 of them.",
    ),
    (
        charts.best_and_worst,
        "Best and worst categories",
        "By the AP in {first}. In brackets: objects in the ground truth. " + _CHANCE,
    ),
)


def write_report(comparison: Comparison, folder: str | os.PathLike) -> Path:
    """
    Write the report of a comparison into a folder.

    It gets ``report.html``, which holds all it shows, the figures as PNG, ``per_category.csv`` and
    ``summary.json``. Earlier files of these names are replaced.

    Args:
        comparison: made with ``details=True``.
        folder: made where it is missing.

    Returns:
        The path of ``report.html``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for iou_type, kind in KINDS.items():
        if iou_type not in comparison.iou_types:
            continue
        first = next(f.name for f in comparison.files if iou_type in f.tasks)
        pictures = []
        for draw, title, caption in _FIGURES:
            figure = draw(comparison, iou_type)
            if figure is not None:
                file = folder / f"{iou_type}_{draw.__name__}.png"
                title, caption = title.format(first=first), caption.format(first=first)
                pictures.append(Picture(title, caption, _write_png(figure, file)))
        sections.append(Section(kind, pictures))
    misses = [
        Picture("", caption, _write_png(figure, folder / f"misses_{number}.png"))
        for number, (caption, figure) in enumerate(draw_misses(comparison), start=1)
    ]
    _write_categories(comparison, folder / "per_category.csv")
    write_json(comparison.summary(), folder / "summary.json")
    report = folder / "report.html"
    report.write_text(render(comparison, sections, misses), encoding="utf-8")
    return report


def _write_png(figure: Figure, path: Path) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _write_categories(comparison: Comparison, path: Path) -> None:
    """One row for each category, AP in percent; nothing where the ground truth has no object."""
    columns, names = [], []
    for file in comparison.files:
        suffix = f" {file.name}" if len(comparison.files) > 1 else ""
        for iou_type, task in file.tasks.items():
            for metric in ("AP", "AP50", "AR"):
                names.append(f"{iou_type}/{metric}{suffix}")
                values = [row[metric] for row in task.categories]
                columns.append(["" if math.isnan(value) else value for value in values])
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "id", "group", "image_count", "instances", *names])
        rows = next(iter(comparison.files[0].tasks.values())).categories
        for i, row in enumerate(rows):
            about = [row[key] for key in ("name", "id", "group", "image_count", "annotations")]
            writer.writerow([*about, *(column[i] for column in columns)])
