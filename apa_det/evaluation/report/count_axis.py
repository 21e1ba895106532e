"""A logarithmic axis of image counts, with the frequency groups as bands."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from ...data.frequency import FrequencyGroups
from ...utils.plotting import group_colour, label

__all__ = ["group_bands", "image_count_axis", "plain_counts"]


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
