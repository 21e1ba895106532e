"""The pictures and instances of each class, in a dataset and in an epoch of a sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from ..frequency import FREQUENCY_LABELS, frequency_group

__all__ = ["ClassCounts", "class_groups", "count_classes", "epoch_table"]


@dataclass(frozen=True)
class ClassCounts:
    """The instances of each class in each picture: P pairs of picture and class.

    Attributes:
        num_pictures: N, with and without instances.
        num_classes: K.
        pictures: (P,) int64, place of the picture in the dataset.
        classes: (P,) int64, contiguous id of a class in it. No pair stands twice.
        instances: (P,) int64, the instances of that class in that picture.
    """

    num_pictures: int
    num_classes: int
    pictures: np.ndarray
    classes: np.ndarray
    instances: np.ndarray

    @property
    def image_count(self) -> np.ndarray:
        """(K,) int64: the pictures with each class."""
        return np.bincount(self.classes, minlength=self.num_classes)

    @property
    def instance_count(self) -> np.ndarray:
        """(K,) float64: the instances of each class."""
        return np.bincount(self.classes, self.instances, minlength=self.num_classes)


def count_classes(dataset: Sequence[dict], num_classes: int = 0) -> ClassCounts:
    """Count the instances of each class in each picture. Crowd regions are none.

    Args:
        dataset: detectron2's dataset dicts.
        num_classes: at least this many classes; more if the dataset has them.
    """
    places, classes = [], []
    for i, picture in enumerate(dataset):
        for instance in picture.get("annotations", ()):
            if not instance.get("iscrowd"):
                places.append(i)
                classes.append(instance["category_id"])
    num_classes = max(num_classes, max(classes, default=-1) + 1)
    keys = np.array(places, np.int64) * num_classes + np.array(classes, np.int64)
    pairs, instances = np.unique(keys, return_counts=True)
    pictures, classes = np.divmod(pairs, max(num_classes, 1))
    return ClassCounts(len(dataset), num_classes, pictures, classes, instances)


def class_groups(counts: ClassCounts, dataset_names: Sequence[str] = ()) -> list[str]:
    """The frequency group of each class: "r", "c" or "f".

    Args:
        counts: of the whole training set.
        dataset_names: what it consists of. The groups of a single dataset are those that its
            metadata give, if they do; otherwise they follow from the image counts, as in LVIS.
    """
    if len(dataset_names) == 1:
        groups = MetadataCatalog.get(dataset_names[0]).get("class_frequency")
        if groups is not None:
            return list(groups)
    return [frequency_group(int(count)) for count in counts.image_count]


def epoch_table(counts: ClassCounts, groups: Sequence[str], repeats: np.ndarray) -> str:
    """What a dataset holds and an epoch is expected to see, for each frequency group.

    Args:
        counts: of the dataset.
        groups: the frequency group of each class, as :func:`class_groups` gives them.
        repeats: (N,), how often an epoch sees each picture, as expected.

    Returns:
        A table, a row for each group and one for all. The classes of the dataset are those with
        instances, and those of an epoch are expected in one picture of it at least. A picture
        counts for every group that it has a class of.
    """
    seen = np.bincount(counts.classes, repeats[counts.pictures], minlength=counts.num_classes)
    groups = np.array([*groups, *[""] * (counts.num_classes - len(groups))])
    rows = []
    for name in (*FREQUENCY_LABELS, None):
        members = np.isin(groups, list(FREQUENCY_LABELS) if name is None else name)
        pairs = members[counts.classes]
        pictures = np.unique(counts.pictures[pairs])
        if name is None:
            pictures = np.arange(counts.num_pictures)
        present = members & (counts.image_count > 0)
        instances = counts.instances[pairs].sum()
        seen_instances = (counts.instances * repeats[counts.pictures])[pairs].sum()
        rows.append(
            (
                FREQUENCY_LABELS.get(name, "all"),
                present.sum(),
                len(pictures),
                instances,
                (present & (seen > 1 - 1e-6)).sum(),
                round(repeats[pictures].sum()),
                round(seen_instances),
                f"{seen_instances / instances:.2f}" if instances else "",
            )
        )
    names = ("classes", "pictures", "instances")
    headers = ["", *names, *(f"{name}\nin an epoch" for name in names), "ratio of\ninstances"]
    return tabulate(rows, headers, disable_numparse=[7])
