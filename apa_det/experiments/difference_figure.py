"""Plot the results of a comparison."""

import math
import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evaluation.comparison import format_difference
from ..utils.plotting import DPI, GREY, INK, file_color, grid, label
from .results import Results
from .table import IOU_TYPE_NAMES

_COLOR = file_color(1)
_ROW_HEIGHT = 0.62  # inches


def write_figure(results: Results, output_dir: str) -> str:
    """Write ``comparison.png`` and return its path."""
    path = os.path.join(output_dir, "comparison.png")
    draw(results).savefig(path, dpi=DPI)
    return path


def draw(results: Results) -> Figure:
    """Plot a panel per IoU type and metric: each row's seeds, mean and difference to the first."""
    rows, metrics = results.plan.rows, results.metrics
    iou_types = results.iou_types or ("bbox",)
    height = _ROW_HEIGHT * len(rows) + 0.7
    figure = Figure(figsize=(2.2 + 3 * len(metrics), height * len(iou_types) + 0.6))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(iou_types), len(metrics), sharey=True, squeeze=False)
    for line, iou_type in zip(axes, iou_types, strict=True):
        for axis, metric in zip(line, metrics, strict=True):
            _draw_panel(axis, results, iou_type, metric)
        line[0].set_yticks(range(len(rows)), [label(row.name) for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.7)  # first row at the top
    figure.legend(handles=_legend(results), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_panel(axis: Axes, results: Results, iou_type: str, metric: str) -> None:
    first = results.mean(results.plan.rows[0].name, iou_type, metric)
    axis.set_title(f"{metric}, {IOU_TYPE_NAMES[iou_type]}", fontsize=10)
    axis.tick_params(axis="y", length=0)
    grid(axis, "x")
    if math.isnan(first):
        axis.set_xticks([])
        axis.text(0.5, 0.5, "undefined", color=GREY, ha="center", transform=axis.transAxes)
        return
    axis.set_xlabel(f"{metric}, %", fontsize=9)
    axis.axvline(first, color=GREY, linewidth=1, linestyle="--", zorder=1)
    for y, row in enumerate(results.plan.rows):
        values = list(results.values(row.name, iou_type, metric).values())
        mean = results.mean(row.name, iou_type, metric)
        color = _COLOR if y else INK
        if not values:
            style = {"color": GREY, "ha": "center", "va": "center", "fontsize": 8}
            axis.text(0.5, y, "no finished run", transform=axis.get_yaxis_transform(), **style)
            continue
        axis.scatter(values, [y + 0.22] * len(values), s=18, color=color, alpha=0.6, linewidths=0)
        axis.scatter([mean], [y], s=55, color=color, marker="D", zorder=3)
        difference = results.differences.get((row.name, iou_type, metric))
        if difference is None or math.isnan(difference.difference):
            continue
        axis.plot(
            [first + difference.low, first + difference.high], [y, y], color=color, linewidth=1.5
        )
        axis.annotate(
            format_difference(difference),
            (first + difference.difference, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
    axis.margins(x=0.2)


def _legend(results: Results) -> list[Line2D]:
    def mark(text: str, **kwargs) -> Line2D:
        return Line2D([], [], color=_COLOR, label=text, **{"linestyle": "none", **kwargs})

    first = label(results.plan.rows[0].name)
    return [
        mark("a seed", marker="o", markersize=4.5, alpha=0.6),
        mark("mean", marker="D", markersize=7),
        mark(f"difference to {first}, 95 % interval", linestyle="-"),
        Line2D([], [], color=GREY, linestyle="--", label=f"mean of {first}"),
    ]
