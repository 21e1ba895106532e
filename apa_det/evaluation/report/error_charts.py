"""The report's figures of errors: error types, curves over the score, and confusions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...text import format_number
from ...utils.plotting import GREY, INK, file_color, grid, group_color, label
from ..comparison import Comparison, FileResults
from ..confusions import Confusion
from ..ground_truth import GroundTruth

NUM_CONFUSIONS = 20
_STYLES = {"precision": "--", "recall": ":", "F1": "-"}
_LOW_THRESHOLD = 0.05  # below it, the score axis is logarithmic


def error_types(comparison: Comparison, iou_type: str) -> Figure | None:
    """Plot what each type of error costs, a panel per group; None for boundaries."""
    files = _analyzed(comparison, iou_type)
    if not files:
        return None
    groups = files[0].by_iou_type[iou_type].analysis.groups
    titles = ["all categories", *comparison.ground_truth.groups.labels]
    figure = Figure(figsize=(max(6.0, 2.9 * len(groups)), 3.8), layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True, sharex=True, squeeze=False)[0]
    for i, (group, axis) in enumerate(zip(groups, axes, strict=True)):
        title_color = INK if group is None else group_color(i - 1)
        if not comparison.categories_evaluated.get(group, 1):
            axis.text(0.5, 0.5, "no objects", transform=axis.transAxes, ha="center", color=GREY)
        for number, file in enumerate(files):
            gains = file.by_iou_type[iou_type].analysis.types.dap(group)
            values = 100 * np.array([*gains.values()])
            height = 0.8 / len(files)
            positions = np.arange(len(gains)) + height * (number - (len(files) - 1) / 2)
            color = _color(comparison, files, number, title_color)
            axis.barh(positions, np.nan_to_num(values), height, color=color)
            if np.isnan(values).any():
                continue
            for y, value in zip(positions, values, strict=True):
                text = f" {format_number(value)}"
                axis.text(value, y, text, va="center", fontsize=8, color=INK)
        axis.axhline(len(gains) - 2.5, color=GREY, linewidth=0.8)
        axis.set_title(label(titles[i]), color=title_color, fontweight="bold")
        axis.set_xlabel("gain in AP50, points")
        grid(axis, "x")
    axes[0].set_yticks(np.arange(len(gains)), list(gains))
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, 1.25 * max(axes[0].get_xlim()[1], 1))
    _legend(figure, comparison, files)
    return figure


def score_curves(comparison: Comparison, iou_type: str) -> Figure | None:
    """Plot precision, recall and F1 over the score, a panel per group; None without curves."""
    files = [f for f in _analyzed(comparison, iou_type) if f.by_iou_type[iou_type].analysis.curves]
    if not files:
        return None
    groups = comparison.ground_truth.groups
    figure = Figure(figsize=(max(6.0, 3.4 * len(groups.names)), 4.2), layout="constrained")
    axes = figure.subplots(1, len(groups.names), sharey=True, squeeze=False)[0]
    curves = [file.by_iou_type[iou_type].analysis.curves for file in files]
    best = [c.thresholds.groups[name].value for c in curves for name in groups.names]
    lowest = min((value for value in best if not np.isnan(value)), default=1.0)
    for i, (name, axis) in enumerate(zip(groups.names, axes, strict=True)):
        for number, of_file in enumerate(curves):
            color = _color(comparison, files, number, group_color(i))
            curve, chosen = of_file.groups[name], of_file.thresholds.groups[name]
            for values, style in zip(
                (curve.precision, curve.recall, curve.f1), _STYLES.values(), strict=True
            ):
                width = 2.2 if style == "-" else 1.2
                axis.plot(curve.scores, 100 * values, style, color=color, linewidth=width)
            if not np.isnan(chosen.value):
                style = {"color": color, "s": 40, "zorder": 3, "clip_on": False}
                axis.scatter([chosen.value], [100 * chosen.f1], **style)
                if len(files) == 1:
                    text = f"F1 {format_number(100 * chosen.f1)} at {chosen.value:.3g}"
                    axis.set_xlabel(f"score threshold ({text})")
        axis.set_title(label(groups.labels[i]), color=group_color(i), fontweight="bold")
        if not comparison.categories_evaluated[name]:
            axis.text(0.5, 0.5, "no objects", transform=axis.transAxes, ha="center", color=GREY)
        if lowest < _LOW_THRESHOLD:
            axis.set_xscale("log")
            axis.set_xlim(max(1e-4, 0.1 * lowest), 1)
        else:
            axis.set_xlim(0, 1)
        if not axis.get_xlabel():
            axis.set_xlabel("score threshold")
        axis.set_ylim(0, 102)
        grid(axis)
    axes[0].set_ylabel("percent")
    lines = [Line2D([], [], color=INK, linestyle=s, label=n) for n, s in _STYLES.items()]
    lines.append(Line2D([], [], color=INK, marker="o", linestyle="", label="highest F1"))
    _legend(figure, comparison, files, lines)
    return figure


def confusions(comparison: Comparison, file: FileResults) -> Figure | None:
    """Plot a file's worst confusions with more frequent categories; None without any."""
    truth = comparison.ground_truth
    worst = worst_confusions(truth, file)
    if not worst:
        return None
    figure = Figure(figsize=(10, 1.7 + 0.3 * len(worst)), layout="constrained")
    axis = figure.subplots()
    positions = np.arange(len(worst))
    groups = truth.category_groups[[c.category for c in worst]].tolist()
    colors = [group_color(i) for i in groups]
    total = 100 * np.array([c.count / c.objects for c in worst])
    certain = 100 * np.array([c.certain / c.objects for c in worst])
    axis.barh(positions, certain, 0.7, color=colors)
    axis.barh(positions, total - certain, 0.7, left=certain, color=colors, alpha=0.4)
    for y, (value, confusion) in enumerate(zip(total, worst, strict=True)):
        text = f" {confusion.count:,} of {confusion.objects:,}, score {confusion.mean_score:.2f}"
        axis.text(value, y, text, va="center", fontsize=8.5)
    names = [
        f"{label(truth.category_names[c.category])} → {label(truth.category_names[c.taken_for])}"
        for c in worst
    ]
    axis.set_yticks(positions, names, fontsize=9)
    axis.set(
        xlim=(0, 1.3 * max(total)),
        ylim=(len(worst) - 0.4, -0.6),
        xlabel="share of the category's objects, %",
    )
    axis.set_xticks([tick for tick in axis.get_xticks() if tick <= 100])
    grid(axis, "x")
    shown = sorted(set(groups))
    handles = [Patch(color=group_color(i), label=_group_label(truth, i)) for i in shown]
    if (total > certain).any():
        handles.append(Patch(color=INK, alpha=0.4, label="pale: may be correct too"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    return figure


def worst_confusions(truth: GroundTruth, file: FileResults) -> list[Confusion]:
    """Return the 20 most frequent confusions with more frequent categories, the rarest group first.

    If there are none, the most frequent of all are returned.
    """
    found = [c for analysis in file.analyses().values() for c in analysis.confusions]
    groups = truth.category_groups
    rarer = [c for c in found if 0 <= groups[c.category] < groups[c.taken_for]]
    return (sorted(rarer, key=lambda c: groups[c.category]) or found)[:NUM_CONFUSIONS]


def _group_label(truth: GroundTruth, index: int) -> str:
    return label(truth.groups.labels[index]) if index >= 0 else "no group"


def _analyzed(comparison: Comparison, iou_type: str) -> list[FileResults]:
    return [f for f in comparison.files_with(iou_type) if f.by_iou_type[iou_type].analysis]


def _color(comparison: Comparison, files: Sequence[FileResults], number: int, only: str) -> str:
    """Return the color of ``files[number]``, or ``only`` if it is the only file."""
    return only if len(files) == 1 else file_color(comparison.files.index(files[number]))


def _legend(
    figure: Figure,
    comparison: Comparison,
    files: Sequence[FileResults],
    handles: Sequence[Line2D] = (),
) -> None:
    patches = []
    if len(files) > 1:
        colors = (_color(comparison, files, number, INK) for number in range(len(files)))
        names = (label(file.name) for file in files)
        patches = [Patch(color=c, label=n) for c, n in zip(colors, names, strict=True)]
    if handles := [*patches, *handles]:
        figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False)
