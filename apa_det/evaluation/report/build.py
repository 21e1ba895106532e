"""Writing the report of a comparison: page, figures and tables."""

import math
import os
from pathlib import Path

from ...text import write_csv
from ...utils.atomic_files import open_atomic, writing
from ...utils.html_page import to_jpeg, to_png
from ...utils.json_files import write_json
from ...utils.progress import Progress
from ..comparison import Comparison
from . import charts, error_charts
from .crop_figures import draw_confusions, draw_false_positives
from .error_tables import write_confusions, write_score_curves
from .miss_figures import draw_misses
from .page import TITLES, PageFigure, Section, render

_FEW_OBJECTS = (
    "The AP of a category with few objects varies by chance: if there are enough categories, those "
    "with fewer than 5 objects are left out."
)
_FIGURES = (
    (
        charts.ap_by_image_count,
        "AP by image count",
        "Each dot is a category, at the number of training images that contain it. The line is the "
        "mean of categories with similar image counts: the more it falls towards the left, the "
        "worse the detector is on rare categories.",
    ),
    (
        charts.differences,
        "Difference to {first}",
        "Each dot is a category: above zero, the file's AP is higher than that of {first}. The "
        "line is the mean of categories with similar image counts. On the right, in brackets: "
        "objects in the ground truth. " + _FEW_OBJECTS,
    ),
    (
        charts.precision_recall,
        "Precision and recall by group",
        "In percent, averaged over the categories of the group. Solid: also averaged over IoU 0.5 "
        "to 0.95, so the area under the curve is the group's AP. Dashed: IoU 0.5. Where a curve is "
        "zero, no category reaches that recall.",
    ),
    (
        charts.reliability,
        "Reliability of the scores",
        "Precision of the detections at IoU 0.5, by score. On the dotted line, 70% of detections "
        "with a score of 0.7 are true positives. Below it, scores are too high; above it, too low. "
        "Detections that the metric ignores are left out. Hollow dots: fewer than 10 detections.",
    ),
    (
        charts.best_and_worst,
        "Best and worst categories",
        "By the AP of {first}. In brackets: objects in the ground truth. " + _FEW_OBJECTS,
    ),
    (
        error_charts.error_types,
        "Types of errors",
        "What fixing all errors of one type would add to AP50, in percentage points. The table of "
        "error types below explains them.",
    ),
    (
        error_charts.score_curves,
        "Precision, recall and F1 by score threshold",
        "Of the detections whose scores reach the threshold, at IoU 0.5; the categories of a group "
        "are counted together. F1 = 2 × true positives / (detections + objects). Detections that "
        "the metric ignores do not count, so precision is that in images where the category is "
        "verified.",
    ),
)


def write_report(comparison: Comparison, folder: str | os.PathLike) -> Path:
    """Write the report of a comparison into a folder.

    Writes the self-contained page ``report.html``, its figures as PNG and its photos as JPEG,
    ``per_category.csv``, ``confusions.csv``, ``score_curves.csv`` and ``summary.json``. Existing
    files of these names are replaced.

    Args:
        comparison: made with ``details=True``.
        folder: created if missing.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: a file cannot be written.
    """
    folder = Path(folder)
    sections = []
    with writing(folder), Progress("Writing the report", unit="figures") as progress:

        def write(data: bytes, path: Path) -> bytes:
            path.write_bytes(data)
            progress.update()
            return data

        folder.mkdir(parents=True, exist_ok=True)
        for iou_type, iou_type_title in TITLES.items():
            if iou_type not in comparison.iou_types:
                continue
            first = comparison.files_with(iou_type)[0].name
            figures = []
            for draw, title, caption in _FIGURES:
                if figure := draw(comparison, iou_type):
                    file = folder / f"{iou_type}_{draw.__name__}.png"
                    title, caption = title.format(first=first), caption.format(first=first)
                    figures.append(PageFigure(title, caption, write(to_png(figure), file)))
            sections.append(Section(iou_type_title, figures))
        misses = [
            PageFigure("", caption, write(to_jpeg(figure), folder / f"misses_{number}.jpg"))
            for number, (caption, figure) in enumerate(draw_misses(comparison), start=1)
        ]
        confused, wrong = [], []
        for number, file in enumerate(comparison.files, start=1):
            if figure := error_charts.confusions(comparison, file):
                data = write(to_png(figure), folder / f"confusions_{number}.png")
                confused.append(PageFigure("", f"The worst confusions of {file.name}.", data))
            for draw, figures, name, caption in (
                (draw_confusions, confused, "confused", "An object of each of them."),
                (draw_false_positives, wrong, "false_positives", f"Those of {file.name}."),
            ):
                if comparison.image_root is not None and (figure := draw(comparison, file)):
                    data = write(to_jpeg(figure), folder / f"{name}_{number}.jpg")
                    figures.append(PageFigure("", caption, data))
        analyses = comparison.files[0].analyses()
        if "bbox" in analyses:
            write_confusions(comparison, folder / "confusions.csv")
        if analyses:
            write_score_curves(comparison, folder / "score_curves.csv")
        _write_categories(comparison, folder / "per_category.csv")
        write_json(comparison.summary(), folder / "summary.json")
        report = folder / "report.html"
        with open_atomic(report) as file:
            file.write(render(comparison, sections, misses, confused, wrong))
        return report


def _write_categories(comparison: Comparison, path: Path) -> None:
    """Write a row per category, AP in percent; empty for categories without ground truth."""
    columns, names = [], []
    for file in comparison.files:
        suffix = f" {file.name}" if len(comparison.files) > 1 else ""
        for iou_type, results in file.by_iou_type.items():
            for metric in ("AP", "AP50", "AR"):
                names.append(f"{iou_type}/{metric}{suffix}")
                values = [row[metric] for row in results.categories]
                columns.append(["" if math.isnan(value) else value for value in values])
    about = ("name", "id", "group", "image_count", "annotations")
    categories = next(iter(comparison.files[0].by_iou_type.values())).categories
    rows = (
        [*(row[key] for key in about), *(column[i] for column in columns)]
        for i, row in enumerate(categories)
    )
    header = ["category", "id", "group", "image_count", "instances", *names]
    with open_atomic(path, newline="") as file:
        write_csv(file, header, rows)
