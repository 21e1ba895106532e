"""The report's tables of errors in HTML, and their CSV files."""

import shlex
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from ...text import format_number, write_csv
from ...utils.atomic_files import open_atomic
from ...utils.html_page import dot, sortable_table, table
from ...utils.plotting import file_color, group_color
from ..comparison import Comparison
from ..ground_truth import GroundTruth
from .miss_figures import DETECTED_COLOR, FALSE_POSITIVE_COLOR

_PER_GROUP = 100  # confusions of each group in the page
_ERROR_NOTE = (
    "As in TIDE (Bolya et al., ECCV 2020), at IoU 0.5: what AP50 would gain, in percentage points, "
    "if all errors of one type were fixed. In brackets: their number at any score, by the category "
    "of the detection. "
    "Class: on an object of another category. Location: on an object of its category, IoU 0.1 to "
    "0.5. Both: on an object of another category, IoU 0.1 to 0.5. Duplicate: on an object that "
    "another detection has found. Background: on no object. Missed: objects that no detection is "
    "about. False positives and false negatives: all of them fixed at once. Each is fixed alone, "
    "so they do not add up; a category without any correct detection gains nothing if its missed "
    "objects are left out. Detections that the metric ignores are no errors. Masks are compared "
    "within their category only; their other errors are class, both and background."
)
_F1_NOTE = (
    "For the demo, which then shows the detections that reach them. The curves are in the figures "
    "above."
)
_CONFUSION_NOTE = (
    "An object is taken for the category of the detection with the highest score that covers it "
    "(boxes, IoU at least 0.5). Charts and pictures: rarer categories that are taken for more "
    "frequent ones, the rarest group first. Pale, and not “certain” in the table: the other "
    "category is not verified in the image, so it may be correct too. Table: the 100 most frequent "
    "confusions of each group; all are in confusions.csv."
)
_WRONG_NOTE = (
    "Of each frequency group, from other categories and images where possible. Objects that are "
    "not annotated look like background errors."
)
_CONFUSION_HEADS = ("category", "taken for", "group", "its group", "objects", "taken", "share, %")


def error_sections(
    comparison: Comparison, titles: dict[str, str], confused: str, wrong: str
) -> list[str]:
    """Return the sections about errors; empty without error analyses.

    Args:
        comparison: the comparison.
        titles: by IoU type, in the order of the tables.
        confused: HTML of the figures of confusions.
        wrong: HTML of the figures of false positives.
    """
    iou_types = comparison.files[0].analyses()
    if not iou_types:
        return []
    body = ["<h2>Types of errors</h2>", f'<p class="note">{_ERROR_NOTE}</p>']
    for iou_type, title in titles.items():
        if iou_type in iou_types:
            body += [f"<h3>{title}</h3>", error_table(comparison, iou_type)]
    lines = {t: text for t in titles if (text := threshold_lines(comparison, t))}
    if lines:
        body += ["<h2>Score thresholds with the highest F1</h2>", f'<p class="note">{_F1_NOTE}</p>']
        for iou_type, text in lines.items():
            body.append(f"<h3>{titles[iou_type]}</h3>{text}")
    if "bbox" in iou_types:
        rows = confusion_table(comparison)
        note = f'<p class="note">{_CONFUSION_NOTE}</p>'
        body += ["<h2>Confusions</h2>", note, confused, rows or "<p>There are none.</p>"]
    if wrong:
        boxes = f"{dot(FALSE_POSITIVE_COLOR)}false positive, {dot(DETECTED_COLOR)}the object"
        note = f'<p class="note">{_WRONG_NOTE} {boxes}.</p>'
        body += ["<h2>False positives with the highest scores</h2>", note, wrong]
    return body


def error_table(comparison: Comparison, iou_type: str) -> str:
    """Return a table of ΔAP50 and the number of errors by type and group."""
    rows, heads = [], ["type", "all", *map(escape, comparison.ground_truth.groups.labels)]
    for number, file in enumerate(comparison.files):
        analysis = file.analyses().get(iou_type)
        if analysis is None:
            continue
        if len(comparison.files) > 1:
            name = dot(file_color(number)) + escape(file.name)
            rows.append(f"<tr><th>{name}</th>{'<th></th>' * (len(heads) - 1)}</tr>")
        gains = [analysis.types.dap(group) for group in analysis.groups]
        counts = [analysis.types.count(group) for group in analysis.groups]
        for kind in gains[0]:
            values = "".join(
                f"<td>{format_number(100 * gain[kind])} ({count[kind]:,})</td>"
                for gain, count in zip(gains, counts, strict=True)
            )
            rows.append(f"<tr><td>{kind}</td>{values}</tr>")
    return table(heads, rows)


def threshold_lines(comparison: Comparison, iou_type: str) -> str:
    """Return the best thresholds of each file as a flag of the demo; empty without curves."""
    lines = []
    for file in comparison.files:
        analysis = file.analyses().get(iou_type)
        if analysis and analysis.curves:
            flag = f"--confidence-threshold {shlex.quote(analysis.curves.thresholds.text())}"
            name = f"{escape(file.name)}: " if len(comparison.files) > 1 else ""
            lines.append(f"<p>{name}<code>{escape(flag)}</code></p>")
    return "".join(lines)


def confusion_table(comparison: Comparison) -> str:
    """Return a sortable table of the first file's confusions; empty without any."""
    truth = comparison.ground_truth
    found = comparison.files[0].analyses()["bbox"].confusions
    groups = truth.category_groups[[c.category for c in found]].tolist()
    rows, shown = [], dict.fromkeys(groups, 0)
    for confusion, group in zip(found, groups, strict=True):
        shown[group] += 1
        if shown[group] <= _PER_GROUP:
            pair = confusion.category, confusion.taken_for
            names = (escape(truth.category_names[category]) for category in pair)
            labels = (_group(truth, category) for category in pair)
            numbers = (
                f"{confusion.objects:,}",
                f"{confusion.count:,}",
                format_number(100 * confusion.count / confusion.objects),
                f"{confusion.certain:,}",
                f"{confusion.mean_score:.2f}",
            )
            values = "</td><td>".join((*names, *labels, *numbers))
            rows.append(f"<tr><td>{values}</td></tr>")
    heads = (*_CONFUSION_HEADS, "certain", "score")
    head = "".join(f"<th{' class=text' if i < 4 else ''}>{h}</th>" for i, h in enumerate(heads))
    return sortable_table([f"<tr>{head}</tr>"], rows) if rows else ""


def write_confusions(comparison: Comparison, path: Path) -> None:
    """Write all confusions of all files as CSV."""
    truth = comparison.ground_truth
    names, ids = truth.category_names, truth.category_ids.tolist()
    of_group = (*truth.groups.names, "")
    rows = (
        [
            file.name,
            *(names[c.category], ids[c.category], of_group[truth.category_groups[c.category]]),
            *(names[c.taken_for], ids[c.taken_for], of_group[truth.category_groups[c.taken_for]]),
            *(c.objects, c.count, c.certain, round(c.mean_score, 4)),
        ]
        for file in comparison.files
        for analysis in file.analyses().values()
        for c in analysis.confusions
    )
    about = ("category", "id", "group", "taken_for", "taken_for_id", "taken_for_group")
    header = ["file", *about, "objects", "taken", "certain", "mean_score"]
    with open_atomic(path, newline="") as file:
        write_csv(file, header, rows)


def write_score_curves(comparison: Comparison, path: Path) -> None:
    """Write precision, recall and F1 of all files and groups by score as CSV, in percent."""

    def rows() -> Iterator[list]:
        for file in comparison.files:
            for iou_type, analysis in file.analyses().items():
                for group, curve in (analysis.curves.groups if analysis.curves else {}).items():
                    for values in np.column_stack(
                        [
                            curve.scores,
                            *(100 * v for v in (curve.precision, curve.recall, curve.f1)),
                        ]
                    ).tolist():
                        numbers = ("" if value != value else round(value, 6) for value in values)
                        yield [file.name, iou_type, group, *numbers]

    with open_atomic(path, newline="") as file:
        header = ["file", "iou_type", "group", "score", "precision", "recall", "F1"]
        write_csv(file, header, rows())


def _group(truth: GroundTruth, category: int) -> str:
    index = int(truth.category_groups[category])
    return dot(group_color(index)) + escape(truth.groups.labels[index]) if index >= 0 else "–"
