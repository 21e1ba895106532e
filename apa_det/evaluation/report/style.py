"""The look of the figures: colours that colour-blind people tell apart, and labels."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from ..groups import FrequencyGroups

__all__ = [
    "DPI",
    "GREY",
    "INK",
    "file_colour",
    "grid",
    "group_bands",
    "group_colour",
    "image_count_axis",
    "label",
    "plain_counts",
]

DPI = 110
INK, GREY = "#222222", "#8a8a8a"
# Okabe and Ito's palette. The files have other colours than the usual three groups.
_GROUPS = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
_FILES = ("#4d4d4d", "#a8329e", "#e69f00", "#56b4e9", "#8c5a2b", "#000000", "#cc79a7")
_LONGEST = 34


def group_colour(index: int) -> str:
    """The colour of a frequency group; of categories without a group (-1) grey."""
    return GREY if index < 0 else _GROUPS[index % len(_GROUPS)]


def file_colour(index: int) -> str:
    """The colour of a result file."""
    return _FILES[index % len(_FILES)]


def label(text: str) -> str:
    """Text as matplotlib takes it literally, not too long."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 + 1 :]}"
    return " " * text.startswith("_") + text.replace("$", r"\$")


def grid(axis: Axes, which: str = "both") -> None:
    axis.grid(True, axis=which, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def plain_counts(image_counts: np.ndarray) -> np.ndarray:
    """Image counts for a logarithmic axis: 0 is drawn at one half."""
    return np.maximum(image_counts, 0.5)


def image_count_axis(axis: Axes, counts: np.ndarray, groups: FrequencyGroups) -> None:
    """Make the x axis one of image counts, with the groups as bands where they go by them.

    Args:
        axis: where to draw.
        counts: from :func:`plain_counts`.
        groups: the frequency groups.
    """
    low, high = counts.min() / 1.5, counts.max() * 1.5
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = [(tick, f"{tick:,.0f}") for tick in decades if tick >= 1 and low <= tick <= high]
    if counts.min() < 1:
        ticks.insert(0, (0.5, "0"))
    axis.set_xticks([tick for tick, _ in ticks], [text for _, text in ticks])
    axis.minorticks_off()
    axis.set_xlabel("image_count: training pictures that hold the category")
    for i, (left, right) in _band_edges(axis, groups):
        axis.axvspan(left, right, color=group_colour(i), alpha=0.07, linewidth=0)


def group_bands(axis: Axes, groups: FrequencyGroups) -> Iterator[tuple[str, str, float, str]]:
    """Name, label, middle and colour of each band on an axis of :func:`image_count_axis`."""
    for i, (left, right) in _band_edges(axis, groups):
        yield groups.names[i], label(groups.labels[i]), (left * right) ** 0.5, group_colour(i)


def _band_edges(axis: Axes, groups: FrequencyGroups) -> Iterator[tuple[int, tuple[float, float]]]:
    if groups.largest is not None:
        edges = [0, *(largest + 0.5 for largest in groups.largest), np.inf]
        edges = np.clip(edges, *axis.get_xlim()).tolist()
        for i, (left, right) in enumerate(pairwise(edges)):
            if left < right:
                yield i, (left, right)
