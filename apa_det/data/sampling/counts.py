"""Number of images and instances of each class, in a dataset and in an epoch of a sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from ..class_names import dataset_categories, dataset_groups
from ..dataset_records import DatasetRecords
from ..frequency import FREQUENCY_LABELS, FrequencyGroups


@dataclass(frozen=True)
class ClassCounts:
    """Instances of each class in each image, as P distinct pairs of image and class.

    Attributes:
        num_images: N, with and without instances.
        num_classes: K.
        images: int64, shape (P,), index of the image in the dataset.
        classes: int64, shape (P,), contiguous id of the class.
        instances: int64, shape (P,), number of instances of the class in the image.
    """

    num_images: int
    num_classes: int
    images: np.ndarray
    classes: np.ndarray
    instances: np.ndarray

    @property
    def image_count(self) -> np.ndarray:
        """int64, shape (K,): number of images with each class."""
        return np.bincount(self.classes, minlength=self.num_classes)

    @property
    def instance_count(self) -> np.ndarray:
        """float64, shape (K,): number of instances of each class."""
        return np.bincount(self.classes, self.instances, minlength=self.num_classes)


def count_classes(dataset: Sequence[dict], num_classes: int = 0) -> ClassCounts:
    """Count the instances of each class in each image. Crowd regions are not counted.

    Args:
        dataset: detectron2 dataset dicts.
        num_classes: minimum K; the dataset may have more classes.
    """
    if isinstance(dataset, DatasetRecords):
        indices, classes = dataset.owners, dataset.classes
    else:
        pairs = [
            (i, instance["category_id"])
            for i, record in enumerate(dataset)
            for instance in record.get("annotations", ())
            if not instance.get("iscrowd")
        ]
        indices, classes = np.array(pairs, np.int64).reshape(-1, 2).T
    num_classes = max(num_classes, classes.max(initial=-1) + 1)
    keys = indices * num_classes + classes
    pairs, instances = np.unique(keys, return_counts=True)
    images, classes = np.divmod(pairs, max(num_classes, 1))
    return ClassCounts(len(dataset), num_classes, images, classes, instances)


def class_groups(counts: ClassCounts, dataset_names: Sequence[str] = ()) -> list[str]:
    """Return the frequency group of each class: "r", "c" or "f"; see :func:`groups_by_count`.

    Args:
        counts: counts of the whole training set.
        dataset_names: registered datasets in the training set.
    """
    return groups_by_count(counts.image_count.tolist(), dataset_names)


def groups_by_count(image_counts: Sequence[int], dataset_names: Sequence[str] = ()) -> list[str]:
    """Return the frequency group of each class: "r", "c" or "f".

    They are those of the evaluation: the file's ``frequency``, else by the image count, with the
    thresholds of the dataset.

    Args:
        image_counts: number of images with each class in the whole training set.
        dataset_names: registered datasets in the training set. Several ones must give a class the
            same ``frequency``; otherwise it follows from the image count in all of them.
    """
    datasets = [_known_categories(name) for name in dataset_names]
    groups = []
    for i in range(max(len(image_counts), *map(len, datasets), 0)):
        known = [dataset[i] if i < len(dataset) else {} for dataset in datasets]
        given = {category.get("frequency") for category in known}
        count = image_counts[i] if i < len(image_counts) else 0
        category = {"image_count": count, **(known[0] if len(known) == 1 else {})}
        if len(given) == 1:
            category["frequency"] = given.pop()
        groups.append(category)
    single = len(dataset_names) == 1
    lvis = dataset_groups(dataset_names[0]) if single else FrequencyGroups.lvis()
    return [lvis.names[group] for group in lvis.assign(groups).tolist()]


def _known_categories(name: str) -> list[dict]:
    if name in DatasetCatalog:
        return dataset_categories(name)
    frequencies = MetadataCatalog.get(name).get("class_frequency", ())
    return [{"frequency": frequency} for frequency in frequencies]


def epoch_table(counts: ClassCounts, groups: Sequence[str], repeats: np.ndarray) -> str:
    """Tabulate the contents of a dataset and the expected contents of an epoch.

    Args:
        counts: counts of the dataset.
        groups: frequency group of each class, from :func:`class_groups`.
        repeats: shape (N,), expected number of times an epoch sees each image.

    Returns:
        A table with one row per frequency group and one for all. Classes of the dataset are those
        with instances; classes of an epoch are those expected in at least one of its images. An
        image counts for every group that it has a class of.
    """
    # The counts end with the last class that has instances.
    counts = replace(counts, num_classes=max(counts.num_classes, len(groups)))
    seen = np.bincount(counts.classes, repeats[counts.images], minlength=counts.num_classes)
    groups = np.array([*groups, *[""] * (counts.num_classes - len(groups))])
    rows = []
    for name in (*FREQUENCY_LABELS, None):
        members = np.isin(groups, list(FREQUENCY_LABELS) if name is None else name)
        pairs = members[counts.classes]
        images = np.unique(counts.images[pairs])
        if name is None:
            images = np.arange(counts.num_images)
        present = members & (counts.image_count > 0)
        instances = counts.instances[pairs].sum()
        seen_instances = (counts.instances * repeats[counts.images])[pairs].sum()
        rows.append(
            (
                FREQUENCY_LABELS.get(name, "all"),
                present.sum(),
                len(images),
                instances,
                (present & (seen > 1 - 1e-6)).sum(),
                round(repeats[images].sum()),
                round(seen_instances),
                f"{seen_instances / instances:.2f}" if instances else "",
            )
        )
    names = ("classes", "images", "instances")
    headers = ["", *names, *(f"{name}\nin an epoch" for name in names), "ratio of\ninstances"]
    return tabulate(rows, headers, disable_numparse=[7])
