"""The HTML page of the report, without external files."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from ...text import format_number
from ...utils.html_page import document, dot, image, table
from ...utils.plotting import GREY, file_color, group_color
from ..comparison import (
    AGNOSTIC_NOTE,
    INTERVAL_NOTE,
    Comparison,
    FileResults,
    format_difference,
)
from ..resampling import Difference
from .category_table import category_table
from .error_tables import error_sections
from .miss_figures import DETECTED_COLOR, FALSE_POSITIVE_COLOR, MISSED_COLOR

TITLES = {"segm": "Masks", "boundary": "Boundaries", "bbox": "Boxes"}  # in page order


@dataclass(frozen=True)
class PageFigure:
    title: str
    caption: str
    data: bytes  # of a PNG or JPEG file


@dataclass(frozen=True)
class Section:
    """The figures of one IoU type."""

    title: str
    figures: list[PageFigure]


def render(
    comparison: Comparison,
    sections: list[Section],
    misses: list[PageFigure],
    confused: list[PageFigure],
    wrong: list[PageFigure],
) -> str:
    """Return the HTML of the page.

    The first section is open, the others are collapsed; ``misses`` are the figures of the images
    with the most missed objects, ``confused`` those of confusions, ``wrong`` of false positives.
    """
    files = comparison.files
    names = " and ".join(f.name for f in files) if len(files) < 3 else f"{len(files)} result files"
    body = [
        f"<h1>Detection on {escape(os.path.basename(comparison.gt_file))}</h1>",
        f'<p class="lead">{escape(names)}. {escape(_scope(comparison))}</p>',
        *_metric_tables(comparison),
        *(
            f'<p class="note">{escape(note)}</p>'
            for note in (_how_to_read(comparison), *comparison.notes())
        ),
        *_difference_table(comparison),
        *_agnostic_table(comparison),
        "<h2>What was evaluated</h2>",
        _group_table(comparison),
        _file_table(comparison),
    ]
    for number, section in enumerate(sections):
        figures = "".join(map(_figure, section.figures))
        if number == 0:
            body += [f"<h2>{section.title} in figures</h2>", figures]
            body += _misses(comparison, misses)
        else:
            title = f"{section.title} in figures"
            body.append(f"<details><summary>{title}</summary>{figures}</details>")
    figures = ("".join(map(_figure, group)) for group in (confused, wrong))
    body += error_sections(comparison, TITLES, *figures)
    body += [
        "<h2>All categories</h2>",
        '<p class="note">Images: those of the training set with the category. Instances: objects '
        "in the ground truth. AP and AR in percent; “–”: no ground truth. Categories with few "
        "images come first; a click on the head of a column sorts by it.</p>",
        category_table(comparison, TITLES),
    ]
    title = f"{names} on {os.path.basename(comparison.gt_file)}"
    footer = (
        f"Made by apa_det on {time.strftime('%Y-%m-%d at %H:%M')}. In the same folder: the figures "
        "as PNG, the AP of each category in per_category.csv, confusions in confusions.csv, curves "
        "over the score in score_curves.csv, all metrics and errors in summary.json."
    )
    return document(title, body, footer)


def _scope(comparison: Comparison) -> str:
    truth = comparison.ground_truth
    limit = "no limit on detections per image"
    if comparison.max_dets is not None:
        limit = f"at most {comparison.max_dets:,} detections per image (highest scores)"
    listed = comparison.image_ids_file or ""
    listed = f" listed in {os.path.basename(listed)}" if listed else ""
    return (
        f"LVIS metric over {len(truth.image_ids):,} images{listed} with {truth.counted.sum():,} "
        f"objects of {len(truth.category_ids):,} categories; {limit}."
        + (" Every category counts in every image, as in COCO." if truth.verified is None else "")
        + (f" The ground truth has {truth.crowd_note()}" if truth.num_crowds else "")
    )


def _how_to_read(comparison: Comparison) -> str:
    groups = comparison.ground_truth.groups
    by_group = ", ".join(
        f"AP{name}" if name == text else f"AP{name} {text}"
        for name, text in zip(groups.names, groups.labels, strict=True)
    )
    text = (
        "In percent, higher is better; “–”: no ground truth. AP is the mean over categories and "
        "the IoU thresholds 0.5, 0.55, …, 0.95; AP50 and AP75 are at one threshold. By object "
        f"size: APs small, APm medium, APl large. By category frequency: {by_group}. AR is the "
        "recall of all detections that count."
    )
    if len(comparison.files) > 1:
        first = comparison.files[0].name
        text += f" Bold: the best file. Small numbers: the difference to the first file, {first}."
    return text


def _iou_types(comparison: Comparison) -> list[str]:
    """Return the evaluated IoU types in page order."""
    return [iou_type for iou_type in TITLES if iou_type in comparison.iou_types]


def _metric_tables(comparison: Comparison) -> Iterator[str]:
    """Yield tables of limited width, each with all IoU types and files."""
    iou_types = _iou_types(comparison)
    for columns in zip(*map(comparison.table_metrics, iou_types), strict=True):
        rows = []
        for iou_type, metrics in zip(iou_types, columns, strict=True):
            files = comparison.files_with(iou_type)
            head = "".join(f"<th>{escape(name)}</th>" for name in metrics)
            rows.append(f"<tr><th>{TITLES[iou_type]}</th>{head}</tr>")
            for number, file in enumerate(files):
                cells = "".join(_metric_cell(files, number, iou_type, name) for name in metrics)
                rows.append(f"<tr><td>{_file_name(comparison, file)}</td>{cells}</tr>")
        yield f'<div class="scroll"><table class="metrics">{"".join(rows)}</table></div>'


def _difference_table(comparison: Comparison) -> Iterator[str]:
    """Yield the table of the differences to the first file with their intervals, if there are."""
    rows = []
    for iou_type in _iou_types(comparison):
        for file, differences in comparison.differences(iou_type):
            cells = "".join(map(_difference_cell, differences.values()))
            rows.append(
                f"<tr><td>{TITLES[iou_type]}: {_file_name(comparison, file)}</td>{cells}</tr>"
            )
    if rows:
        yield f"<h2>Differences to {escape(comparison.files[0].name)}</h2>"
        yield table(("", *map(escape, differences)), rows)
        yield f'<p class="note">{INTERVAL_NOTE} In color: intervals without 0.</p>'


def _difference_cell(difference: Difference) -> str:
    way = _way(difference.difference) if difference.is_clear else "same"
    value, _, interval = format_difference(difference).replace("-", "−").partition(" ")
    return f'<td class="{way}">{value}<small>{interval}</small></td>'


def _agnostic_table(comparison: Comparison) -> Iterator[str]:
    """Yield the table of the class-agnostic recalls, if they were computed."""
    rows = []
    for iou_type in _iou_types(comparison):
        for file in comparison.files_with(iou_type):
            recalls = file.by_iou_type[iou_type].agnostic_recall
            if recalls:
                names = [name.replace("_agnostic", "") for name in recalls]
                cells = "".join(f"<td>{format_number(value)}</td>" for value in recalls.values())
                name = _file_name(comparison, file)
                rows.append(f"<tr><td>{TITLES[iou_type]}: {name}</td>{cells}</tr>")
    if rows:
        yield "<h2>Class-agnostic recall</h2>"
        yield table(("", *map(escape, names)), rows)
        yield f'<p class="note">{AGNOSTIC_NOTE}</p>'


def _file_name(comparison: Comparison, file: FileResults) -> str:
    several = len(comparison.files) > 1
    mark = dot(file_color(comparison.files.index(file))) if several else ""
    return mark + escape(file.name)


def _metric_cell(files: list[FileResults], number: int, iou_type: str, name: str) -> str:
    values = [f.by_iou_type[iou_type].metrics.get(name, math.nan) for f in files]
    value = values[number]
    text = format_number(value)
    best = len(files) > 1 and text == format_number(max(values, key=_nan_last)) and text != "–"
    change = ""
    if number and not math.isnan(value - values[0]):
        difference = round(value - values[0], 1)
        change = f'<small class="{_way(difference)}">{difference:+.1f}</small>'.replace("-", "−")
    return f"<td{' class=best' if best else ''}>{text}{change}</td>"


def _way(difference: float) -> str:
    """Return the style class of a difference."""
    return "up" if difference > 0 else "down" if difference < 0 else "same"


def _nan_last(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _group_table(comparison: Comparison) -> str:
    truth = comparison.ground_truth
    groups = truth.groups
    of_objects = truth.category_groups[truth.annotation_categories[truth.counted]]
    objects = np.bincount(of_objects + 1, minlength=len(groups.names) + 1)[1:]
    rows = []
    for i, (name, text) in enumerate(zip(groups.names, groups.labels, strict=True)):
        counts = truth.image_counts[truth.category_groups == i]
        ends = sorted({counts.min(), counts.max()}) if len(counts) else []
        span = " to ".join(f"{count:,}" for count in ends) or "–"
        rows.append(
            f"<tr><td>{dot(group_color(i))}{escape(text)}</td><td>{span}</td><td>{len(counts):,}</td>"
            f"<td>{comparison.categories_evaluated[name]:,}</td><td>{objects[i]:,}</td></tr>"
        )
    columns = "image_count: training images", "categories", "with ground truth here", "objects"
    return table(("Group", *columns), rows)


def _file_table(comparison: Comparison) -> str:
    rows = []
    left_out = any(file.num_left_out for file in comparison.files)
    for number, file in enumerate(comparison.files):
        mark = dot(file_color(number)) if len(comparison.files) > 1 else ""
        others = f"<td>{file.num_left_out:,}</td>" if left_out else ""
        rows.append(
            f"<tr><td>{mark}{escape(file.path)}</td><td>{file.num_detections:,}</td>{others}</tr>"
        )
    others = ("left out, on other images",) if left_out else ()
    return table(("Result file", "detections", *others), rows)


def _misses(comparison: Comparison, misses: list[PageFigure]) -> list[str]:
    if not misses:
        return []
    first = comparison.files[0].name if len(comparison.files) > 1 else "the detector"
    key = ", ".join(
        f"{dot(fill)}{text}"
        for fill, text in (
            (MISSED_COLOR, "missed object: no detection of any score matches it at IoU 0.5"),
            (DETECTED_COLOR, "detected object, or true positive"),
            (FALSE_POSITIVE_COLOR, "false positive"),
            (GREY, "detection that the metric ignores"),
        )
    )
    return [
        "<h2>Images with the most missed objects</h2>",
        f'<p class="note">Images where {escape(first)} misses the most objects. {key}. Only the '
        "detections with the highest scores are drawn, about as many as there are objects.</p>",
        *map(_figure, misses),
    ]


def _figure(figure: PageFigure) -> str:
    title = f"<h3>{escape(figure.title)}</h3>" if figure.title else ""
    caption, alt = escape(figure.caption), figure.title or figure.caption
    return f"<figure>{title}<figcaption>{caption}</figcaption>{image(figure.data, alt)}</figure>"
