"""The table of all categories in the report's page."""

import math
from collections.abc import Iterator
from html import escape

from ...text import format_number
from ...utils.html_page import dot, sortable_table
from ...utils.plotting import group_color
from ..comparison import Comparison

_ABOUT = ("category", "group", "images", "instances")


def category_table(comparison: Comparison, titles: dict[str, str]) -> str:
    """Return the HTML of a sortable table with a row per category, those with few images first.

    AP and AR are in percent; categories without ground truth come last.

    Args:
        comparison: the comparison.
        titles: by IoU type, in the order of the columns.
    """
    above, heads, columns = ["<th colspan=4></th>"], [], []
    heads += [f"<th{' class=text' if i < 2 else ''}>{name}</th>" for i, name in enumerate(_ABOUT)]
    for iou_type, title in titles.items():
        first = None
        for file in comparison.files_with(iou_type) if iou_type in comparison.iou_types else ():
            categories = file.by_iou_type[iou_type].categories
            aps, recalls = ([row[name] for row in categories] for name in ("AP", "AR"))
            new = [("AP", [*map(format_number, aps)]), ("AR", [*map(format_number, recalls)])]
            if first is None:
                first = aps
            else:
                new.append(("change", [*map(_change, first, aps)]))
            name = f"{title}: {escape(file.name)}" if len(comparison.files) > 1 else title
            above.append(f"<th colspan={len(new)}>{name}</th>")
            heads += [f"<th>{name}</th>" for name, _ in new]
            columns += [values for _, values in new]
    rows = _rows(comparison, columns)
    return sortable_table((f"<tr>{''.join(above)}</tr>", f"<tr>{''.join(heads)}</tr>"), rows)


def _change(before: float, after: float) -> str:
    return format_number(after - before, sign="+").replace("-", "−")


def _rows(comparison: Comparison, columns: list[list[str]]) -> Iterator[str]:
    truth = comparison.ground_truth
    names = dict(zip((*truth.groups.names, ""), (*truth.groups.labels, "–"), strict=True))
    colors = {name: dot(group_color(i)) for i, name in enumerate(truth.groups.names)} | {"": ""}
    categories = next(iter(comparison.files[0].by_iou_type.values())).categories
    order = sorted(
        range(len(categories)),
        key=lambda i: (math.isnan(categories[i]["AP"]), categories[i]["image_count"]),
    )
    for i in order:
        row = categories[i]
        about = (
            escape(row["name"]),
            colors[row["group"]] + escape(names[row["group"]]),
            f"{row['image_count']:,}",
            f"{row['annotations']:,}",
        )
        cells = "</td><td>".join((*about, *(column[i] for column in columns)))
        yield f"<tr><td>{cells}</td></tr>"
