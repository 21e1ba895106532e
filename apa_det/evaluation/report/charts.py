"""The figures of the report, each of a comparison and one IoU type."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...text import format_number
from ...utils.plotting import GREY, INK, file_color, grid, group_color, label
from ..comparison import Comparison, FileResults
from .count_axis import group_bands, image_count_axis, positive_counts

_TREND_POINTS = 12
_RANKED = 10  # categories at each end
_MIN_DETECTIONS = 10  # bins with fewer are hollow

_TREND = Line2D(
    [], [], color=INK, linewidth=2, marker="o", markersize=4, label="mean of similar image counts"
)


def ap_by_image_count(comparison: Comparison, iou_type: str) -> Figure:
    """Plot the AP of each category against its image count, with a trend line per file."""
    files = comparison.files_with(iou_type)
    groups = comparison.ground_truth.groups
    rows = _evaluated(files[0], iou_type)
    counts = positive_counts(comparison.ground_truth.image_counts[rows])
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axis = figure.subplots()
    image_count_axis(axis, counts, groups)
    for number, file in enumerate(files):
        aps = _aps(file, iou_type)[rows]
        dots, line = file_color(number), file_color(number)
        if len(files) == 1:
            dots, line = _group_colors(comparison, rows), INK
        axis.scatter(counts, aps, s=20, c=dots, alpha=0.5 / len(files) ** 0.5, linewidths=0)
        has_trend = _draw_trend(axis, counts, aps, line)
    for name, text, center, color in group_bands(axis, groups):
        if len(files) == 1:
            text += f": AP {format_number(files[0].by_iou_type[iou_type].metrics[f'AP{name}'])}"
        style = {"color": color, "fontweight": "bold", "ha": "center", "va": "bottom"}
        axis.text(center, 1.01, text, transform=axis.get_xaxis_transform(), **style)
    if len(files) > 1:
        handles = _file_patches(files)
    else:
        handles = _group_patches(comparison) if groups.max_counts is None else []
    _legend(figure, handles + [_TREND] * has_trend)
    axis.set(ylim=(-2, 102), ylabel="AP of the category")
    grid(axis, "y")
    return figure


def differences(comparison: Comparison, iou_type: str) -> Figure | None:
    """Plot the AP difference of each file to the first; None if there is only one file."""
    first, *others = comparison.files_with(iou_type)
    if not others:
        return None
    truth = comparison.ground_truth
    rows = _evaluated(first, iou_type)
    counts = positive_counts(truth.image_counts[rows])
    ranked, minimum = _ranked(first, iou_type)
    figure = Figure(figsize=(10.5, 4.8 * len(others)), layout="constrained")
    figure.get_layout_engine().set(hspace=0.08)
    axes = figure.subplots(len(others), 2, squeeze=False, width_ratios=(1.3, 1))
    for (dots, bars), other in zip(axes, others, strict=True):
        gains = _aps(other, iou_type) - _aps(first, iou_type)
        image_count_axis(dots, counts, truth.groups)
        dots.axhline(0, color=INK, linewidth=1)
        colors = _group_colors(comparison, rows)
        dots.scatter(counts, gains[rows], s=20, c=colors, alpha=0.5, linewidths=0)
        has_trend = _draw_trend(dots, counts, gains[rows], INK)
        limit = 1.08 * max(1.0, np.abs(gains[rows]).max())
        dots.set(ylim=(-limit, limit), ylabel="difference in AP")
        dots.set_title(f"{label(other.name)} against {label(first.name)}")
        grid(dots, "y")

        order = ranked[np.argsort(-gains[ranked], kind="stable")]
        gained, lost = order[:_RANKED], order[-_RANKED:]
        chosen = np.concatenate([gained[gains[gained] > 0], lost[gains[lost] < 0]])
        _draw_bars(bars, gains[chosen], _group_colors(comparison, chosen))
        _name_categories(bars, comparison, first, iou_type, chosen)
        bars.axvline(0, color=INK, linewidth=1)
        bars.set(xlabel=f"difference in AP{minimum}", title="largest gains and losses")
    _legend(figure, _group_patches(comparison) + [_TREND] * has_trend)
    return figure


def precision_recall(comparison: Comparison, iou_type: str) -> Figure:
    """Plot precision against recall, a panel per frequency group."""
    files = comparison.files_with(iou_type)
    groups = comparison.ground_truth.groups
    figure, axes = _group_panels(comparison, 4.0, 1)
    recall = 100 * comparison.recall_thresholds
    for i, (name, axis) in enumerate(zip(groups.names, axes[0], strict=True)):
        for number, file in enumerate(files):
            results = file.by_iou_type[iou_type]
            color = group_color(i) if len(files) == 1 else file_color(number)
            axis.plot(recall, results.precision[name], color=color, linewidth=2.2)
            axis.plot(recall, results.precision50[name], color=color, linewidth=1.2, linestyle="--")
        if len(files) == 1:
            ap = format_number(files[0].by_iou_type[iou_type].metrics[f"AP{name}"])
            axis.title.set_text(f"{label(groups.labels[i])}: AP {ap}")
        axis.set(xlim=(0, 100), ylim=(0, 102), xticks=range(0, 101, 25), xlabel="recall, %")
        grid(axis)
    axes[0, 0].set_ylabel("precision, %")
    lines = [
        Line2D([], [], color=INK, linewidth=2.2, label="mean over IoU 0.5 to 0.95"),
        Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label="IoU 0.5"),
    ]
    _legend(figure, (_file_patches(files) if len(files) > 1 else []) + lines)
    return figure


def reliability(comparison: Comparison, iou_type: str) -> Figure | None:
    """Plot the reliability diagram of each frequency group; None if a file has no bins."""
    files = comparison.files_with(iou_type)
    binned = [file.by_iou_type[iou_type].reliability for file in files]
    if not all(binned):
        return None
    figure, axes = _group_panels(comparison, 5.2, 2, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, 11)
    for i, name in enumerate(comparison.ground_truth.groups.names):
        precision, counts = axes[:, i]
        precision.plot([0, 1], [0, 100], color=GREY, linewidth=1, linestyle=":")
        for number, bins in enumerate(by_group[name] for by_group in binned):
            color = group_color(i) if len(files) == 1 else file_color(number)
            filled = bins.counts > 0
            scores, percent = bins.mean_scores[filled], 100 * bins.precisions[filled]
            dots = ["white" if n < _MIN_DETECTIONS else color for n in bins.counts[filled]]
            precision.plot(scores, percent, color=color, linewidth=2)
            style = {"s": 32, "zorder": 3, "clip_on": False}
            precision.scatter(scores, percent, c=dots, edgecolors=color, **style)
            if len(files) == 1:
                counts.bar(edges[:-1], bins.counts, 0.1, align="edge", color=color, alpha=0.6)
            else:
                counts.stairs(bins.counts, edges, color=color, linewidth=1.5, baseline=None)
        precision.set(xlim=(0, 1), ylim=(0, 102))
        counts.set(yscale="log", xlabel="score")
        counts.yaxis.set_major_formatter("{x:,.0f}")
        counts.yaxis.set_minor_formatter("")
        counts.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "0.5", "0.75", "1"))
        grid(precision)
        grid(counts, "y")
    most = max(bins.counts.max() for by_group in binned for bins in by_group.values())
    axes[1, 0].set_ylim(0.7, 2 * max(most, 1))
    axes[0, 0].set_ylabel("precision, %")
    axes[1, 0].set_ylabel("detections")
    handles = _file_patches(files) if len(files) > 1 else []
    marker = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "color": INK}
    handles += [
        Line2D([], [], color=GREY, linewidth=1, linestyle=":", label="score equals precision"),
        Line2D([], [], **marker, label=f"fewer than {_MIN_DETECTIONS} detections"),
    ]
    _legend(figure, handles)
    return figure


def best_and_worst(comparison: Comparison, iou_type: str) -> Figure:
    """Plot the AP of the best and worst categories of the first file."""
    files = comparison.files_with(iou_type)
    aps = np.stack([_aps(file, iou_type) for file in files])
    objects = np.array([row["annotations"] for row in files[0].by_iou_type[iou_type].categories])
    ranked, minimum = _ranked(files[0], iou_type)
    number = min(_RANKED, len(ranked) // 2)
    # Ties: first the category with more objects, whose AP is more reliable.
    best = ranked[np.lexsort((-objects[ranked], -aps[0, ranked]))][: max(1, number)]
    rest = np.setdiff1d(ranked, best)
    worst = rest[np.lexsort((-objects[rest], aps[0, rest]))][:number]
    figure = Figure(figsize=(10, 1.5 + 0.32 * max(1, number)), layout="constrained")
    columns = figure.subplots(1, 2), (best, worst), ("highest", "lowest")
    for axis, chosen, title in zip(*columns, strict=True):
        positions = np.arange(len(chosen))
        if len(files) == 1:
            _draw_bars(axis, aps[0, chosen], _group_colors(comparison, chosen))
            for y, ap in zip(positions, aps[0, chosen], strict=True):
                axis.text(ap + 1, y, format_number(ap), va="center", fontsize=9)
        else:
            spans = aps[:, chosen]
            axis.hlines(positions, spans.min(0), spans.max(0), color="#cccccc", linewidth=2)
            for i in range(len(files)):
                size = 90 * 0.65**i  # smaller on top, so that equal APs stay visible
                axis.scatter(spans[i], positions, s=size, color=file_color(i), zorder=3)
            axis.invert_yaxis()
        _name_categories(axis, comparison, files[0], iou_type, chosen)
        axis.set(xlim=(-2, 108), xlabel=f"AP{minimum}", title=f"{title} AP")
        grid(axis, "x")
    if len(files) > 1:
        _legend(figure, _file_patches(files))
    _legend(figure, _group_patches(comparison), "lower")
    return figure


def _aps(file: FileResults, iou_type: str) -> np.ndarray:
    """Return the (K,) AP of each category, NaN without ground truth."""
    return np.array([row["AP"] for row in file.by_iou_type[iou_type].categories])


def _evaluated(file: FileResults, iou_type: str) -> np.ndarray:
    """Return the indices of the categories with ground truth."""
    return np.flatnonzero(~np.isnan(_aps(file, iou_type)))


def _ranked(file: FileResults, iou_type: str) -> tuple[np.ndarray, str]:
    """Return the categories with enough objects to be ranked, and a note on how many that is."""
    objects = np.array([row["annotations"] for row in file.by_iou_type[iou_type].categories])
    for minimum in (5, 2, 1):
        rows = np.flatnonzero(objects >= minimum)
        if len(rows) >= 4 * _RANKED:
            break
    return rows, f", at least {minimum} objects" if minimum > 1 else ""


def _draw_trend(axis: Axes, counts: np.ndarray, values: np.ndarray, color: str) -> bool:
    """Draw the mean over categories with similar image counts, if that gives three points."""
    number = min(_TREND_POINTS, len(counts) // 8)
    edges = np.quantile(counts, np.arange(1, number) / number) if number > 2 else []
    bins = np.searchsorted(edges, counts)  # equal counts share a bin
    chosen = [bins == i for i in np.unique(bins)]
    if len(chosen) < 3:
        return False
    x = [np.exp(np.log(counts[rows]).mean()) for rows in chosen]
    y = [values[rows].mean() for rows in chosen]
    axis.plot(x, y, color=color, linewidth=2, marker="o", markersize=4)
    return True


def _draw_bars(axis: Axes, values: np.ndarray, colors: list[str]) -> None:
    axis.barh(np.arange(len(values)), values, color=colors, height=0.7)
    axis.invert_yaxis()
    grid(axis, "x")


def _name_categories(
    axis: Axes, comparison: Comparison, file: FileResults, iou_type: str, rows: np.ndarray
) -> None:
    """Label the bars with the category, in its group's color, and its number of objects."""
    table = file.by_iou_type[iou_type].categories
    names = [f"{label(table[row]['name'])}  ({table[row]['annotations']:,})" for row in rows]
    axis.set_yticks(np.arange(len(rows)), names, fontsize=9 if len(rows) <= _RANKED else 8)
    for tick, color in zip(axis.get_yticklabels(), _group_colors(comparison, rows), strict=True):
        tick.set_color(color)


def _group_panels(
    comparison: Comparison, height: float, rows: int, **options
) -> tuple[Figure, np.ndarray]:
    """Return a figure with a column per group, and its axes (rows, groups)."""
    groups = comparison.ground_truth.groups
    figure = Figure(figsize=(max(6.0, 3.4 * len(groups.names)), height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    axes = figure.subplots(rows, len(groups.names), sharey="row", squeeze=False, **options)
    for i, axis in enumerate(axes[0]):
        axis.set_title(label(groups.labels[i]), color=group_color(i), fontweight="bold")
    return figure, axes


def _group_colors(comparison: Comparison, rows: Sequence[int]) -> list[str]:
    """Return the group colors of some categories."""
    return [group_color(i) for i in comparison.ground_truth.category_groups[rows].tolist()]


def _group_patches(comparison: Comparison) -> list[Artist]:
    truth = comparison.ground_truth
    names = enumerate(map(label, truth.groups.labels))
    patches = [Patch(color=group_color(i), label=name) for i, name in names]
    if (truth.category_groups < 0).any():
        patches.append(Patch(color=group_color(-1), label="no group"))
    return patches


def _file_patches(files: list[FileResults]) -> list[Artist]:
    return [Patch(color=file_color(i), label=label(f.name)) for i, f in enumerate(files)]


def _legend(figure: Figure, handles: list[Artist], position: str = "upper") -> None:
    figure.legend(handles=handles, loc=f"outside {position} center", ncols=5, frameon=False)
