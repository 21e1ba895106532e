"""The HTML page of the report, without JavaScript or external files."""

import math
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from ...utils.plotting import GREY, file_color, group_color
from ..side_by_side import Comparison, FileResults, format_number
from .miss_figures import DETECTED_COLOR, FALSE_POSITIVE_COLOR, MISSED_COLOR

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; border-bottom: 2px solid #eee; }
h3 { font-size: 1.05rem; margin: 2rem 0 .2rem; }
p, figcaption { max-width: 48rem; }
.lead, figcaption, footer, .note { color: #555; }
figcaption, .note { font-size: .92rem; }
figure { margin: 0; }
figure img { max-width: 100%; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; }
th { font-weight: 600; border-bottom: 2px solid #bbb; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; font-weight: 400; font-size: .78rem; line-height: 1.1; }
tr + tr > th { padding-top: 1.3rem !important; }
.metrics th, .metrics td { padding: .35rem .55rem; }
.best { font-weight: 700; }
.up { color: #0072b2; } .down { color: #b24a00; } .same { color: #777; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%;
  margin-right: .45em; }
summary { cursor: pointer; font-size: 1.05rem; font-weight: 600; margin-top: 2.4rem; }
footer { margin-top: 3rem; border-top: 1px solid #eee; padding-top: .8rem; font-size: .85rem; }
"""
TITLES = {"segm": "Masks", "boundary": "Boundaries", "bbox": "Boxes"}  # in page order


@dataclass(frozen=True)
class PageFigure:
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """The figures of one IoU type."""

    title: str
    figures: list[PageFigure]


def render(comparison: Comparison, sections: list[Section], misses: list[PageFigure]) -> str:
    """Return the HTML of the page.

    The first section is open, the others are collapsed; ``misses`` are the figures of the images
    with the most missed objects.
    """
    files = comparison.files
    names = " and ".join(f.name for f in files) if len(files) < 3 else f"{len(files)} result files"
    body = [
        f"<h1>Detection on {escape(os.path.basename(comparison.gt_file))}</h1>",
        f'<p class="lead">{escape(names)}. {escape(_scope(comparison))}</p>',
        *_metric_tables(comparison),
        f'<p class="note">{escape(_how_to_read(comparison))}</p>',
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
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(names)} on {escape(os.path.basename(comparison.gt_file))}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<footer>Made by apa_det on {time.strftime('%Y-%m-%d at %H:%M')}. In the same folder: "
        "the figures as PNG, the AP of each category in per_category.csv, all metrics in "
        "summary.json.</footer>\n</body>\n</html>\n"
    )


def _scope(comparison: Comparison) -> str:
    truth = comparison.ground_truth
    limit = "no limit on detections per image"
    if comparison.max_dets is not None:
        limit = f"at most {comparison.max_dets:,} detections per image (highest scores)"
    return (
        f"LVIS metric over {len(truth.image_ids):,} images with {truth.counted.sum():,} objects "
        f"of {len(truth.category_ids):,} categories; {limit}."
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


def _metric_tables(comparison: Comparison) -> Iterator[str]:
    """Yield tables of limited width, each with all IoU types and files."""
    iou_types = [iou_type for iou_type in TITLES if iou_type in comparison.iou_types]
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


def _file_name(comparison: Comparison, file: FileResults) -> str:
    several = len(comparison.files) > 1
    dot = _dot(file_color(comparison.files.index(file))) if several else ""
    return dot + escape(file.name)


def _metric_cell(files: list[FileResults], number: int, iou_type: str, name: str) -> str:
    values = [f.by_iou_type[iou_type].metrics.get(name, math.nan) for f in files]
    value = values[number]
    text = format_number(value)
    best = len(files) > 1 and text == format_number(max(values, key=_nan_last)) and text != "–"
    change = ""
    if number and not math.isnan(value - values[0]):
        difference = round(value - values[0], 1)
        way = "up" if difference > 0 else "down" if difference < 0 else "same"
        change = f'<small class="{way}">{difference:+.1f}</small>'.replace("-", "−")
    return f"<td{' class=best' if best else ''}>{text}{change}</td>"


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
            f"<tr><td>{_dot(group_color(i))}{escape(text)}</td><td>{span}</td><td>{len(counts):,}</td>"
            f"<td>{comparison.categories_evaluated[name]:,}</td><td>{objects[i]:,}</td></tr>"
        )
    columns = "image_count: training images", "categories", "with ground truth here", "objects"
    return _table(("Group", *columns), rows)


def _file_table(comparison: Comparison) -> str:
    rows = []
    for number, file in enumerate(comparison.files):
        dot = _dot(file_color(number)) if len(comparison.files) > 1 else ""
        rows.append(f"<tr><td>{dot}{escape(file.path)}</td><td>{file.num_detections:,}</td></tr>")
    return _table(("Result file", "detections"), rows)


def _table(columns: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _dot(fill: str) -> str:
    return f'<span class="dot" style="background:{fill}"></span>'


def _misses(comparison: Comparison, misses: list[PageFigure]) -> list[str]:
    if not misses:
        return []
    first = comparison.files[0].name if len(comparison.files) > 1 else "the detector"
    key = ", ".join(
        f"{_dot(fill)}{text}"
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
    data = b64encode(figure.png).decode()
    caption, alt = escape(figure.caption), escape(figure.title or figure.caption)
    return (
        f"<figure>{title}<figcaption>{caption}</figcaption>"
        f'<img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
    )
