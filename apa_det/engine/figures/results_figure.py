"""The figure of a training: losses, learning rate and metrics over the iterations."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...data.frequency import FrequencyGroups
from ...utils.plotting import INK, file_color, grid, group_color, label
from ..training_history import TrainingHistory

_TOTAL, _RATE = "total_loss", "lr"
_SUBSET = "subset/"
_IOU_TYPES = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries of masks"}
_FEW = 3  # points: fewer are not connected
_POINTS = 60  # more are lines without markers, smoothed if they are losses
_MAX_PANELS = 8
_COLORS = (1, 2, 3, 4, 5, 0)  # of the losses: all but black


def draw_results(history: TrainingHistory, groups: FrequencyGroups) -> Figure | None:
    """Draw the losses, the learning rate and the APs of a training; None if it has none of them.

    Args:
        history: the scalars.
        groups: the frequency groups of the evaluation.
    """
    panels = []
    losses = [name for name in history.names() if "loss" in name.rpartition("/")[2]]
    if losses:
        panels.append(lambda axis: _draw_losses(axis, history, losses))
    if history.series(_RATE)[0]:
        panels.append(lambda axis: _draw_rate(axis, history))
    for prefix in _prefixes(history):
        panels.append(lambda axis, prefix=prefix: _draw_metrics(axis, history, prefix, groups))
    panels = panels[:_MAX_PANELS]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width, height = 6 * columns, 3.9 * rows
    figure = Figure(figsize=(width, height))  # constrained layout would double the time
    figure.subplots_adjust(
        *(0.75 / width, 0.55 / height, 1 - 0.2 / width, 1 - 0.4 / height),
        wspace=0.24,
        hspace=0.35,
    )
    axes = figure.subplots(rows, columns, squeeze=False).flat
    last = max(history.scalars)
    for axis in axes:
        draw = panels.pop(0) if panels else None
        if draw is None:
            axis.set_axis_off()
            continue
        draw(axis)
        grid(axis)
        axis.set_xlim(0, 1.03 * last)
        axis.set_xlabel("iteration")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def _draw_losses(axis: Axes, history: TrainingHistory, names: Sequence[str]) -> None:
    curves: list[tuple[str, Sequence[int], Sequence[float], str, dict]] = []
    if _TOTAL in names:
        iterations, values = history.series(_TOTAL)
        if len(values) > _POINTS:
            axis.plot(iterations, values, color=INK, linewidth=0.7, alpha=0.3)
        curves.append(("total", iterations, values, INK, {"linewidth": 2.2}))
    for i, (text, members) in enumerate(_components(names).items()):
        iterations, values = history.series(members[0])
        for member in members[1:]:
            values = [a + b for a, b in zip(values, history.series(member)[1], strict=False)]
        style = {"linestyle": "-" if i < len(_COLORS) else "--"}
        curves.append((text, iterations, values, file_color(_COLORS[i % len(_COLORS)]), style))
    largest = []
    for text, iterations, values, color, style in curves:
        values = _smoothed(values)
        _plot(axis, iterations[: len(values)], values, color, text, **style)
        largest += values
    axis.set_title("training losses")
    axis.set_ylabel("loss")
    axis.set_ylim(0, _top(largest))
    axis.legend(frameon=False, fontsize=8, ncols=1 + len(curves) // 5)


def _components(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the losses to draw beside the total, with those of all stages of a cascade as one."""
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(re.sub(r"_stage\d+$", "", name), []).append(name)
    stages.pop(_TOTAL, None)
    if len(stages) == 1 and _TOTAL in names:
        return {}
    several = ", {} stages".format
    return {
        name.removeprefix("loss_") + (several(len(members)) if len(members) > 1 else ""): members
        for name, members in stages.items()
    }


def _top(values: Sequence[float]) -> float | None:
    """Return the upper end of an axis that a few much larger values may leave."""
    largest, usual = max(values), 3 * np.percentile(values, 98)
    return 1.05 * min(largest, usual) or None


def _draw_rate(axis: Axes, history: TrainingHistory) -> None:
    iterations, values = history.series(_RATE)
    _plot(axis, iterations, values, INK, "")
    axis.set_title("learning rate")
    axis.set_ylabel("learning rate")
    axis.set_ylim(0, 1.08 * max(values) or None)


def _prefixes(history: TrainingHistory) -> list[str]:
    """Return what precedes "AP" in the names of the metrics, subsets together with the whole."""
    found = [name.removesuffix("AP") for name in history.names() if name.endswith("/AP")]
    return list(dict.fromkeys(name.replace(_SUBSET, "") for name in found))


def _draw_metrics(
    axis: Axes, history: TrainingHistory, prefix: str, groups: FrequencyGroups
) -> None:
    dataset, _, iou_type = prefix.rstrip("/").rpartition("/")
    subset = f"{dataset}/{_SUBSET}{iou_type}/".lstrip("/")
    curves = [("AP", INK, "AP: all classes")]
    curves += [
        (f"AP{name}", group_color(i), f"AP{name}: {text}" if text != name else f"AP{name}")
        for i, (name, text) in enumerate(groups.named())
    ]
    has_subset = any(history.series(subset + name)[0] for name, _, _ in curves)
    values: list[float] = []
    for name, color, text in curves:
        points = history.series((subset if has_subset else prefix) + name)
        if points[0]:
            width = 2.2 if name == "AP" else 1.6
            _plot(axis, *points, color, label(text), linewidth=width)
            values += points[1]
        whole = history.series(prefix + name) if has_subset else ([], [])
        if whole[0]:
            axis.plot(*whole, color=color, linestyle="", marker="D", markersize=7, mec="white")
            values += whole[1]
    if has_subset:
        axis.plot([], [], color=INK, linestyle="", marker="D", label="whole test set")
    base, _, tta = iou_type.partition("_")
    what = _IOU_TYPES.get(base, base) + (" with test-time augmentation" if tta else "")
    where = f" on {label(dataset)}" if dataset else ""
    axis.set_title(f"AP of {what}{where}" + (", on a subset of the images" if has_subset else ""))
    axis.set_ylabel("AP (%)")
    axis.set_ylim(0, 1.15 * max(values, default=0) or 1)
    axis.legend(frameon=False, fontsize=8, ncols=2)


def _plot(
    axis: Axes,
    iterations: Sequence[int],
    values: Sequence[float],
    color: str,
    text: str,
    linestyle: str = "-",
    linewidth: float = 1.4,
) -> None:
    """Draw points; a line too if there are at least three, and no points if there are many."""
    axis.plot(
        *(iterations, values),
        color=color,
        linestyle=linestyle if len(values) >= _FEW else "",
        linewidth=linewidth,
        marker="o" if len(values) <= _POINTS else "",
        markersize=4 if len(values) >= _FEW else 6,
        label=text or None,
    )


def _smoothed(values: Sequence[float]) -> Sequence[float]:
    """Return a running mean if there are many values: of the 2% around each."""
    if len(values) <= _POINTS:
        return values
    window = np.ones(2 * max(1, len(values) // 100) + 1)
    return np.divide(
        np.convolve(values, window, "same"), np.convolve(np.ones(len(values)), window, "same")
    ).tolist()
