"""The picture of a dataset: classes, samplers, box sizes and crowding."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...utils.plotting import GREY, INK, file_color, grid, group_color
from ..frequency import FREQUENCY_LABELS
from .recommendation import LIMITS, Advice

_FEW = 60  # classes that are drawn one by one
_SHORT = {
    "TrainingSampler": "plain",
    "RepeatFactorTrainingSampler": "repeat factor",
    "InstanceAwareRepeatFactorTrainingSampler": "instance-aware repeat factor",
    "ClassAwareTrainingSampler": "class-aware",
    "UndersamplingTrainingSampler": "undersampling",
}


def draw_advice(advice: Advice) -> Figure:
    """Draw the dataset in four panels."""
    figure = Figure(figsize=(12, 9))
    figure.set_layout_engine("constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
    axes = figure.subplots(2, 2)
    for axis, draw, title in (
        (axes[0, 0], _classes, "Images of each class"),
        (axes[0, 1], _samplers, "Images of each class in an epoch of each sampler"),
        (axes[1, 0], _sizes, "Sizes of the boxes"),
        (axes[1, 1], _objects, "Objects per image"),
    ):
        axis.set_title(title, fontsize=12)
        grid(axis, "y")
        if draw is _classes or len(advice.statistics.classes):
            draw(axis, advice)
        else:
            axis.set(xticks=[], yticks=[])
            axis.text(0.5, 0.5, "no annotations", color=GREY, ha="center", transform=axis.transAxes)
    return figure


def _ranked(axis: Axes, number: int) -> None:
    axis.set_xlabel("class, by its number of images (most frequent first)")
    axis.set_xlim(0.5, number + 0.5)
    if number <= 12:
        axis.set_xticks(range(1, number + 1))
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)


def _log_counts(axis: Axes, counts: np.ndarray) -> None:
    """Make the y axis logarithmic, with 0 at its lower end if a count is below 1."""
    axis.set_yscale("symlog", linthresh=1, linscale=0.5)
    axis.set_ylim(0 if counts.min(initial=1) < 1 else 0.8, max(counts.max(initial=1), 1) * 1.5)
    ticks = [10**k for k in range(10) if 10**k < counts.max(initial=1) * 1.5]
    ticks = [0, *ticks] if counts.min(initial=1) < 1 else ticks
    axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])


def _classes(axis: Axes, advice: Advice) -> None:
    statistics = advice.statistics
    counts = statistics.image_counts
    order = np.argsort(-counts, kind="stable")
    ranks = np.arange(1, len(counts) + 1)
    groups = np.array(statistics.groups)[order]
    names = {group: i for i, group in enumerate(FREQUENCY_LABELS)}
    for group, i in names.items():
        members = groups == group
        if len(ranks) <= _FEW:
            axis.bar(ranks[members], counts[order][members], color=group_color(i))
        else:
            heights = np.where(members, counts[order], 0)
            axis.stairs(heights, np.arange(len(ranks) + 1) + 0.5, fill=True, color=group_color(i))
        empty = ranks[members & (counts[order] == 0)]  # these classes have no bar
        axis.scatter(empty, np.zeros(len(empty)), s=10, color=group_color(i))
    limits = [limit for limit in LIMITS[1:] if limit < counts.max(initial=0) * 1.5]
    for limit in limits:
        axis.axhline(limit, color=INK, linewidth=0.8, linestyle=":")
    _ranked(axis, len(ranks))
    _log_counts(axis, counts)
    axis.set_ylabel("images with the class")
    handles = [
        Patch(color=group_color(i), label=f"{label}: {(groups == group).sum():,}")
        for group, (i, label) in zip(names, enumerate(FREQUENCY_LABELS.values()), strict=True)
    ]
    if limits:
        text = f"{' and '.join(map(str, limits))} images"
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label=text))
    axis.legend(handles=handles, title="classes", framealpha=0.9, edgecolor="none", fontsize=9)


def _samplers(axis: Axes, advice: Advice) -> None:
    counts = advice.statistics.image_counts
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    ranks = np.arange(1, len(order) + 1)
    recommended = advice.recommended("DATALOADER.SAMPLER_TRAIN")
    drawn, unconnected = [], len(ranks) < 3  # a line through two points says nothing
    styles = ("-", "-", "--", "-", "--")
    for i, choice in enumerate(advice.choices):
        if choice.fault:
            continue
        is_best = choice.name == recommended
        values = choice.image_counts[order]
        drawn.append(values)
        x = ranks + 0.12 * (i - 2) * unconnected
        axis.plot(
            x,
            values,
            linestyle="" if unconnected else styles[i % len(styles)],
            color=file_color(i),
            linewidth=2.6 if is_best else 1.4,
            marker="o" if len(ranks) <= _FEW else None,
            markersize=4,
            label=_SHORT[choice.name] + (" (recommended)" if is_best else ""),
        )
        for point in zip(x, values, strict=True) if unconnected else ():
            offset = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{point[1]:.0f}", point, fontsize=8, **offset)
    _ranked(axis, len(ranks))
    _log_counts(axis, np.concatenate(drawn))
    axis.set_ylabel("images with the class in an epoch, as expected")
    axis.legend(frameon=False, fontsize=9)


def _sizes(axis: Axes, advice: Advice) -> None:
    statistics = advice.statistics
    values = 100 * np.clip(statistics.relative_sizes, 1e-3, 1)
    low = min(10 ** np.floor(np.log10(values.min())), 10)
    bins = np.geomspace(low, 100, 41)
    groups = np.array(statistics.groups)[statistics.classes]
    for i, (group, label) in enumerate(FREQUENCY_LABELS.items()):
        chosen = values[groups == group]
        if len(chosen):
            weights = np.full(len(chosen), 100 / len(chosen))
            text = f"{label}: {len(chosen):,}"
            color = group_color(i)
            axis.hist(
                chosen, bins, weights=weights, color=color, histtype="step", lw=1.8, label=text
            )
    axis.set_xscale("log")
    axis.set_xlim(low, 100)
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100) if tick >= low]
    axis.set_xticks(ticks, [f"{tick:g}%" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("square root of the share of the image that a box covers")
    axis.set_ylabel("boxes of the group (%)")
    axis.legend(title="boxes", frameon=False, fontsize=9)


def _objects(axis: Axes, advice: Advice) -> None:
    statistics = advice.statistics
    objects = statistics.objects_per_image
    limit = max(int(np.percentile(objects, 99)), 10)
    edges = np.unique(np.linspace(0, limit, min(limit, 40) + 1).round()) + 0.5
    shown = np.minimum(objects, limit)
    weights = np.full(len(shown), 100 / len(shown))
    axis.hist(shown, edges, weights=weights, color=GREY, rwidth=0.85)
    axis.set_xlim(0.5, limit + 0.5)
    more = "" if objects.max() <= limit else f" (the last bar: {limit} to {objects.max():,})"
    axis.set_xlabel(f"objects in an annotated image{more}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("annotated images (%)")
    total = len(statistics.classes)
    lines = [
        f"{(values > 0.5).sum() / total:.1%} of the boxes overlap another one{of_class}"
        for values, of_class in (
            (statistics.overlaps, ""),
            (statistics.same_class_overlaps, " of their class"),
        )
    ]
    axis.text(
        *(0.97, 0.95, "\n".join([*lines, "at IoU > 0.5"])),
        ha="right",
        va="top",
        fontsize=9,
        color=INK,
        transform=axis.transAxes,
    )
