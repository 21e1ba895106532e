"""The figure of the labels of a training set: counts of the classes, and sizes of the boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ...data.class_names import dataset_categories, dataset_groups
from ...data.class_thresholds import ClassInfo
from ...data.dataset_records import DatasetRecords
from ...data.frequency import FrequencyGroups
from ...data.sampling.counts import count_classes, groups_by_count
from ...utils.plotting import GREY, INK, grid, group_color, label

_NAMED = 30  # classes: more are not named
_BARS = 60  # classes: more are an area
_MANY = 2000  # boxes: fewer get wider bins
_LOWEST = 0.5  # of the logarithmic axis of counts
_WITHOUT_ANGLE = 4  # numbers of a box, which may have an angle after them


@dataclass(frozen=True, eq=False)
class TrainingLabels:
    """The labels of a training set.

    Attributes:
        num_images: with and without annotations.
        image_counts, instance_counts: (K,) images and instances of each class.
        classes: (A,) class of each box.
        relative_sizes: (A,) square root of the share of its image that a box covers.
        info: the classes.
    """

    num_images: int
    image_counts: np.ndarray
    instance_counts: np.ndarray
    classes: np.ndarray
    relative_sizes: np.ndarray
    info: ClassInfo


def read_labels(
    dataset: Sequence[dict], names: Sequence[str], groups: FrequencyGroups | None = None
) -> TrainingLabels:
    """Read the labels of a training set.

    Args:
        dataset: the detectron2 dataset dicts that are trained on.
        names: the registered datasets in it, with the same classes.
        groups: the frequency groups of the evaluation. None: those of the datasets.

    Raises:
        UserError: ``groups`` name an unknown class.
    """
    categories = dataset_categories(names[0]) if names else []
    counts = count_classes(dataset, len(categories))
    for i in range(len(categories), counts.num_classes):
        categories.append({"id": i, "name": str(i)})
    if groups is None:
        groups = dataset_groups(names[0]) if len(names) == 1 else FrequencyGroups.lvis()
        letters = groups_by_count(counts.image_count.tolist(), names)
        indices = np.array([groups.names.index(letter) for letter in letters], np.int64)
    else:
        pairs = zip(categories, counts.image_count.tolist(), strict=True)
        indices = groups.assign([{"image_count": count, **c} for c, count in pairs])
    classes, sizes = _boxes(dataset)
    info = ClassInfo(
        tuple(category["name"] for category in categories),
        np.array([category["id"] for category in categories], np.int64),
        groups,
        indices,
    )
    counted = counts.image_count, counts.instance_count
    return TrainingLabels(len(dataset), *counted, classes, sizes, info)


def _boxes(dataset: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return (A,) the class and the relative size of each box."""
    if isinstance(dataset, DatasetRecords):
        classes, sides = dataset.classes, dataset.boxes[:, 2:]
        image_sizes = dataset.sizes[dataset.owners]
    else:
        values = (
            value
            for record in dataset
            for a in record.get("annotations", ())
            if not a.get("iscrowd") and "bbox" in a
            for value in (
                *(a["category_id"], a["bbox_mode"], record["height"], record["width"]),
                *a["bbox"][:_WITHOUT_ANGLE],
            )
        )
        columns = np.fromiter(values, float).reshape(-1, 4 + _WITHOUT_ANGLE)
        classes, modes, image_sizes = columns[:, 0].astype(int), columns[:, 1], columns[:, 2:4]
        boxes = columns[:, 4:]
        corners = (modes == BoxMode.XYXY_ABS)[:, None]
        sides = boxes[:, 2:] - corners * boxes[:, :2]
    areas = np.maximum(sides, 0).prod(1) / np.maximum(image_sizes.astype(float).prod(1), 1)
    return classes, np.sqrt(areas)


def draw_labels(labels: TrainingLabels) -> Figure:
    """Draw the number of images and instances of each class, and the sizes of the boxes."""
    figure = Figure(figsize=(13, 5))
    named = len(labels.info) <= _NAMED
    figure.subplots_adjust(0.075, 0.3 if named else 0.13, 0.985, 0.92, wspace=0.17)
    counts, sizes = figure.subplots(1, 2, width_ratios=(1.35, 1))
    grid(counts, "y")
    _draw_counts(counts, labels)
    grid(sizes)
    _draw_sizes(sizes, labels)
    return figure


def _draw_counts(axis: Axes, labels: TrainingLabels) -> None:
    info, number = labels.info, len(labels.info)
    order = np.lexsort((-labels.instance_counts, -labels.image_counts))
    images, instances = labels.image_counts[order], labels.instance_counts[order]
    ranks = np.arange(1, number + 1)
    handles = []
    for i, text in _groups(info):
        members = info.group_indices[order] == i
        heights = np.where(members & (images > 0), images, _LOWEST)
        color = GREY if i < 0 else group_color(i)
        if number <= _BARS:
            axis.bar(ranks, heights - _LOWEST, bottom=_LOWEST, color=color)
        else:  # stairs() takes seconds for 13,204 classes
            axis.fill_between(ranks, heights, _LOWEST, step="mid", color=color, linewidth=0)
        empty = int((members & (images == 0)).sum())
        none = f", {empty:,} without images" if empty else ""
        size = "1 class" if members.sum() == 1 else f"{members.sum():,} classes"
        handles.append(Patch(color=color, label=f"{text}: {size}{none}"))
    present = instances > 0
    style = {"color": INK, "marker": "_" if number <= _BARS else ".", "linestyle": ""}
    style["markersize"] = float(np.clip(400 / max(number, 1), 1.5, 12))
    axis.plot(ranks[present], instances[present], **style)
    style["markersize"] = 9
    handles.append(Line2D([], [], label="instances", **style))
    axis.set_yscale("log")
    axis.set_ylim(_LOWEST, max(2, 2 * instances.max(initial=0)))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.minorticks_off()
    axis.set_xlim(0.5, max(number, 1) + 0.5)
    if number <= _NAMED:
        texts = [label(info.names[i])[:24] for i in order]
        axis.set_xticks(ranks, texts, rotation=45, ha="right", fontsize=8, rotation_mode="anchor")
        axis.tick_params("x", length=0)
        axis.set_xlabel("class")
    else:
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlabel("class, by its number of images")
    axis.set_ylabel("images with the class, instances")
    title = f"{labels.num_images:,} images, {int(instances.sum()):,} instances"
    axis.set_title(f"{title}, {number:,} classes")
    axis.legend(handles=handles, frameon=False, fontsize=9)


def _groups(info: ClassInfo) -> list[tuple[int, str]]:
    """Return the index and the label of each group with classes; -1: no group."""
    names = [*enumerate(map(label, info.groups.labels)), (-1, "unknown group")]
    return [(i, text) for i, text in names if (info.group_indices == i).any()]


def _draw_sizes(axis: Axes, labels: TrainingLabels) -> None:
    percent = 100 * np.clip(labels.relative_sizes, 1e-3, 1)
    low = min(10 ** np.floor(np.log10(percent.min(initial=100))), 10)
    bins = np.geomspace(low, 100, 41 if len(percent) >= _MANY else 21)
    groups = labels.info.group_indices[labels.classes]
    for i, text in _groups(labels.info):
        sizes = percent[groups == i]
        if len(sizes):
            color = GREY if i < 0 else group_color(i)
            heights = 100 * np.histogram(sizes, bins)[0] / len(sizes)
            axis.stairs(heights, bins, color=color, linewidth=1.8, label=f"{text}: {len(sizes):,}")
    axis.set_xscale("log")
    axis.set_xlim(low, 100)
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100) if tick >= low]
    axis.set_xticks(ticks, [f"{tick:g}%" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("size of a box: square root of the share of its image")
    axis.set_ylabel("boxes of the group (%)")
    axis.set_title("sizes of the boxes")
    if len(percent):
        axis.legend(title="boxes", frameon=False, fontsize=9)
