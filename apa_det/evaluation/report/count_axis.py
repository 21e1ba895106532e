"""A logarithmic axis of image counts with a band for each frequency group."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from ...data.frequency import FrequencyGroups
from ...utils.plotting import group_color, label


def positive_counts(image_counts: np.ndarray) -> np.ndarray:
    """Return image counts for a logarithmic axis: 0 becomes 0.5."""
    return np.maximum(image_counts, 0.5)


def image_count_axis(axis: Axes, counts: np.ndarray, groups: FrequencyGroups) -> None:
    """Make the x axis an image count axis, with bands if the groups are ranges of image counts.

    ``counts`` come from :func:`positive_counts`.
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
    axis.set_xlabel("image_count: training images with the category")
    for i, (left, right) in _band_edges(axis, groups):
        axis.axvspan(left, right, color=group_color(i), alpha=0.07, linewidth=0)


def group_bands(axis: Axes, groups: FrequencyGroups) -> Iterator[tuple[str, str, float, str]]:
    """Yield name, label, center and color of each band of :func:`image_count_axis`."""
    for i, (left, right) in _band_edges(axis, groups):
        yield groups.names[i], label(groups.labels[i]), (left * right) ** 0.5, group_color(i)


def _band_edges(axis: Axes, groups: FrequencyGroups) -> Iterator[tuple[int, tuple[float, float]]]:
    if groups.max_counts is not None:
        edges = [0, *(count + 0.5 for count in groups.max_counts), np.inf]
        edges = np.clip(edges, *axis.get_xlim()).tolist()
        for i, (left, right) in enumerate(pairwise(edges)):
            if left < right:
                yield i, (left, right)
