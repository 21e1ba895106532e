"""The figures of the report. Each takes a comparison and an IoU type."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...utils.plotting import GREY, INK, file_colour, grid, group_colour, label
from ..side_by_side import Comparison, FileResults, format_number
from .count_axis import group_bands, image_count_axis, plain_counts

__all__ = ["ap_by_image_count", "best_and_worst", "calibration", "differences", "precision_recall"]

_TREND_POINTS = 12
_RANKED = 10  # categories
_FEW = 10  # detections: their precision is not to be relied on


def ap_by_image_count(comparison: Comparison, iou_type: str) -> Figure:
    """AP of each category against its image count, with the trend of each file."""
    files = _files(comparison, iou_type)
    groups = comparison.ground_truth.groups
    rows = _evaluated(files[0], iou_type)
    counts = plain_counts(comparison.ground_truth.image_counts[rows])
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axis = figure.subplots()
    image_count_axis(axis, counts, groups)
    for number, file in enumerate(files):
        aps = _aps(file, iou_type)[rows]
        dots, line = file_colour(number), file_colour(number)
        if len(files) == 1:
            dots, line = _colours(comparison, rows), INK
        axis.scatter(counts, aps, s=20, c=dots, alpha=0.5 / len(files) ** 0.5, linewidths=0)
        _draw_trend(axis, counts, aps, line)
    for name, text, middle, own in group_bands(axis, groups):
        ap = format_number(files[0].tasks[iou_type].metrics[f"AP{name}"])
        axis.text(
            middle,
            1.01,
            f"{text}: AP {ap}" if len(files) == 1 else text,
            transform=axis.get_xaxis_transform(),
            color=own,
            fontweight="bold",
            ha="center",
            va="bottom",
        )
    if len(files) > 1:
        _legend(figure, _file_patches(files))
    elif groups.largest is None:
        _legend(figure, _group_patches(comparison))
    axis.set(ylim=(-2, 102), ylabel="AP of the category")
    grid(axis, "y")
    return figure


def differences(comparison: Comparison, iou_type: str) -> Figure | None:
    """What each other file gains and loses against the first; None: there is no other file."""
    first, *others = _files(comparison, iou_type)
    if not others:
        return None
    truth = comparison.ground_truth
    rows = _evaluated(first, iou_type)
    counts = plain_counts(truth.image_counts[rows])
    ranked, least = _ranked(first, iou_type)
    figure = Figure(figsize=(10.5, 4.8 * len(others)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.08)
    axes = figure.subplots(len(others), 2, squeeze=False, width_ratios=(1.3, 1))
    for (dots, bars), other in zip(axes, others, strict=True):
        gains = _aps(other, iou_type) - _aps(first, iou_type)
        image_count_axis(dots, counts, truth.groups)
        dots.axhline(0, color=INK, linewidth=1)
        colours = _colours(comparison, rows)
        dots.scatter(counts, gains[rows], s=20, c=colours, alpha=0.5, linewidths=0)
        _draw_trend(dots, counts, gains[rows], INK)
        limit = 1.08 * max(1.0, np.abs(gains[rows]).max())
        dots.set(ylim=(-limit, limit), ylabel="difference in AP")
        dots.set_title(f"{label(other.name)} against {label(first.name)}")
        grid(dots, "y")

        order = ranked[np.argsort(-gains[ranked], kind="stable")]
        gained, lost = order[:_RANKED], order[-_RANKED:]
        chosen = np.concatenate([gained[gains[gained] > 0], lost[gains[lost] < 0]])
        _draw_bars(bars, gains[chosen], _colours(comparison, chosen))
        _name_categories(bars, comparison, first, iou_type, chosen)
        bars.axvline(0, color=INK, linewidth=1)
        bars.set(xlabel=f"difference in AP {least}", title="largest gains and losses")
    _legend(figure, _group_patches(comparison))
    return figure


def precision_recall(comparison: Comparison, iou_type: str) -> Figure:
    """Precision against recall, one panel for each frequency group."""
    files = _files(comparison, iou_type)
    groups = comparison.ground_truth.groups
    figure, axes = _group_panels(comparison, 4.0, 1)
    recall = 100 * comparison.recall_thresholds
    for i, (name, axis) in enumerate(zip(groups.names, axes[0], strict=True)):
        for number, file in enumerate(files):
            task = file.tasks[iou_type]
            own = group_colour(i) if len(files) == 1 else file_colour(number)
            axis.plot(recall, task.precision[name], color=own, linewidth=2.2)
            axis.plot(recall, task.precision50[name], color=own, linewidth=1.2, linestyle="--")
        if len(files) == 1:
            ap = format_number(files[0].tasks[iou_type].metrics[f"AP{name}"])
            axis.title.set_text(f"{label(groups.labels[i])}: AP {ap}")
        axis.set(xlim=(0, 100), ylim=(0, 102), xticks=range(0, 101, 25), xlabel="recall")
        grid(axis)
    axes[0, 0].set_ylabel("precision")
    lines = [
        Line2D([], [], color=INK, linewidth=2.2, label="mean over IoU 0.5 to 0.95"),
        Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label="IoU 0.5"),
    ]
    _legend(figure, (_file_patches(files) if len(files) > 1 else []) + lines)
    return figure


def calibration(comparison: Comparison, iou_type: str) -> Figure | None:
    """How often detections of each score are right; None: see ``calibrate``."""
    files = _files(comparison, iou_type)
    binned = [file.tasks[iou_type].calibration for file in files]
    if not all(binned):
        return None
    figure, axes = _group_panels(comparison, 5.2, 2, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, 11)
    for i, name in enumerate(comparison.ground_truth.groups.names):
        right, counts = axes[:, i]
        right.plot([0, 1], [0, 100], color=GREY, linewidth=1, linestyle=":")
        for number, bins in enumerate(of_groups[name] for of_groups in binned):
            own = group_colour(i) if len(files) == 1 else file_colour(number)
            some = bins.counts > 0
            scores, percent = bins.mean_scores[some], 100 * bins.precisions[some]
            fills = ["white" if count < _FEW else own for count in bins.counts[some]]
            right.plot(scores, percent, color=own, linewidth=2)
            right.scatter(scores, percent, s=32, c=fills, edgecolors=own, zorder=3, clip_on=False)
            if len(files) == 1:
                counts.bar(edges[:-1], bins.counts, 0.1, align="edge", color=own, alpha=0.6)
            else:
                counts.stairs(bins.counts, edges, color=own, linewidth=1.5, baseline=None)
        right.set(xlim=(0, 1), ylim=(0, 102))
        counts.set(yscale="log", xlabel="score")
        counts.yaxis.set_major_formatter("{x:,.0f}")
        counts.yaxis.set_minor_formatter("")
        counts.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "0.5", "0.75", "1"))
        grid(right)
        grid(counts, "y")
    most = max(bins.counts.max() for of_groups in binned for bins in of_groups.values())
    axes[1, 0].set_ylim(0.7, 2 * max(most, 1))
    axes[0, 0].set_ylabel("right detections, %")
    axes[1, 0].set_ylabel("detections")
    if len(files) > 1:
        _legend(figure, _file_patches(files))
    return figure


def best_and_worst(comparison: Comparison, iou_type: str) -> Figure:
    """The categories with the highest and the lowest AP in the first file."""
    files = _files(comparison, iou_type)
    aps = np.stack([_aps(file, iou_type) for file in files])
    objects = np.array([row["annotations"] for row in files[0].tasks[iou_type].categories])
    ranked, least = _ranked(files[0], iou_type)
    number = min(_RANKED, len(ranked) // 2)
    # Of equals first those with more objects: they say more.
    best = ranked[np.lexsort((-objects[ranked], -aps[0, ranked]))][: max(1, number)]
    rest = np.setdiff1d(ranked, best)
    worst = rest[np.lexsort((-objects[rest], aps[0, rest]))][:number]
    figure = Figure(figsize=(10, 1.5 + 0.32 * max(1, number)), layout="constrained")
    for axis, chosen, title in zip(
        figure.subplots(1, 2), (best, worst), ("highest", "lowest"), strict=True
    ):
        places = np.arange(len(chosen))
        if len(files) == 1:
            _draw_bars(axis, aps[0, chosen], _colours(comparison, chosen))
            for place, ap in zip(places, aps[0, chosen], strict=True):
                axis.text(ap + 1, place, format_number(ap), va="center", fontsize=9)
        else:
            spans = aps[:, chosen]
            axis.hlines(places, spans.min(0), spans.max(0), color="#cccccc", linewidth=2)
            for i in range(len(files)):
                size = 90 * 0.65**i  # so that equals show
                axis.scatter(spans[i], places, s=size, color=file_colour(i), zorder=3)
            axis.invert_yaxis()
        _name_categories(axis, comparison, files[0], iou_type, chosen)
        axis.set(xlim=(-2, 108), xlabel=f"AP {least}", title=f"{title} AP")
        grid(axis, "x")
    if len(files) > 1:
        _legend(figure, _file_patches(files))
    _legend(figure, _group_patches(comparison), "lower")
    return figure


def _files(comparison: Comparison, iou_type: str) -> list[FileResults]:
    return [file for file in comparison.files if iou_type in file.tasks]


def _aps(file: FileResults, iou_type: str) -> np.ndarray:
    """(K,) AP of each category, NaN without ground truth."""
    return np.array([row["AP"] for row in file.tasks[iou_type].categories])


def _evaluated(file: FileResults, iou_type: str) -> np.ndarray:
    """The categories with ground truth."""
    return np.flatnonzero(~np.isnan(_aps(file, iou_type)))


def _ranked(file: FileResults, iou_type: str) -> tuple[np.ndarray, str]:
    """The categories with enough objects to rank them, and a text that says how many that is."""
    objects = np.array([row["annotations"] for row in file.tasks[iou_type].categories])
    for least in (5, 2, 1):
        rows = np.flatnonzero(objects >= least)
        if len(rows) >= 4 * _RANKED:
            break
    return rows, f"(categories of {least} objects or more)" if least > 1 else ""


def _draw_trend(axis: Axes, counts: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Means of runs of categories with like image counts; nothing of few categories."""
    number = min(_TREND_POINTS, len(counts) // 8)
    if number >= 2:
        edges = np.quantile(counts, np.arange(1, number) / number)
        runs = np.searchsorted(edges, counts)  # equal counts stay together
        x = [np.exp(np.log(counts[runs == run]).mean()) for run in np.unique(runs)]
        y = [values[runs == run].mean() for run in np.unique(runs)]
        axis.plot(x, y, color=colour, linewidth=2, marker="o", markersize=4)


def _draw_bars(axis: Axes, values: np.ndarray, colours: list[str]) -> None:
    axis.barh(np.arange(len(values)), values, color=colours, height=0.7)
    axis.invert_yaxis()
    grid(axis, "x")


def _name_categories(
    axis: Axes, comparison: Comparison, file: FileResults, iou_type: str, rows: np.ndarray
) -> None:
    """Categories beside their bars, in the colour of their group, with their objects."""
    table = file.tasks[iou_type].categories
    names = [f"{label(table[row]['name'])}  ({table[row]['annotations']:,})" for row in rows]
    axis.set_yticks(np.arange(len(rows)), names, fontsize=9 if len(rows) <= _RANKED else 8)
    for tick, colour in zip(axis.get_yticklabels(), _colours(comparison, rows), strict=True):
        tick.set_color(colour)


def _group_panels(
    comparison: Comparison, height: float, rows: int, **options
) -> tuple[Figure, np.ndarray]:
    """A figure with a column for each group, and its axes (rows, groups)."""
    groups = comparison.ground_truth.groups
    figure = Figure(figsize=(max(6.0, 3.4 * len(groups.names)), height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    axes = figure.subplots(rows, len(groups.names), sharey="row", squeeze=False, **options)
    for i, axis in enumerate(axes[0]):
        axis.set_title(label(groups.labels[i]), color=group_colour(i), fontweight="bold")
    return figure, axes


def _colours(comparison: Comparison, rows: Sequence[int]) -> list[str]:
    """The group colours of some categories."""
    return [group_colour(i) for i in comparison.ground_truth.category_groups[rows].tolist()]


def _group_patches(comparison: Comparison) -> list[Artist]:
    truth = comparison.ground_truth
    patches = [
        Patch(color=group_colour(i), label=label(text))
        for i, text in enumerate(truth.groups.labels)
    ]
    if (truth.category_groups < 0).any():
        patches.append(Patch(color=group_colour(-1), label="no group"))
    return patches


def _file_patches(files: list[FileResults]) -> list[Artist]:
    return [Patch(color=file_colour(i), label=label(f.name)) for i, f in enumerate(files)]


def _legend(figure: Figure, handles: list[Artist], place: str = "upper") -> None:
    figure.legend(handles=handles, loc=f"outside {place} center", ncols=5, frameon=False)
