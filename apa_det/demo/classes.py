"""The classes of a model: names, frequency groups, and the scores from which they count."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog

from ..data import ensure_metadata
from ..evaluation import FrequencyGroups
from ..evaluation.evaluator import category_ids

__all__ = ["ClassInfo", "class_info", "class_thresholds"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ClassInfo:
    """The K classes of a model.

    Attributes:
        names: of the classes.
        category_ids: (K,) int64, the ids that result files give them.
        groups: the frequency groups.
        group_indices: (K,) int64, the place in ``groups.names`` of each class; -1: none is known.
    """

    names: tuple[str, ...]
    category_ids: np.ndarray
    groups: FrequencyGroups
    group_indices: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def class_info(
    dataset_names: Sequence[str],
    num_classes: int,
    groups: FrequencyGroups | None = None,
    count_from: str | None = None,
) -> ClassInfo:
    """The classes of the first of some registered datasets that can be read.

    Where none can be read, the names and ids of the classes are their numbers, from 0, and none is
    of a known group.

    Args:
        dataset_names: the datasets. One that is not registered, or whose file is missing or broken,
            is passed over with a warning.
        num_classes: K, of the model.
        groups: the frequency groups. None: LVIS's, by the dataset's thresholds.
        count_from: a registered dataset of the same classes to take their frequencies from. None:
            the dataset itself.

    Raises:
        FileNotFoundError, ValueError: the dataset has not K classes, ``count_from`` cannot be read
            or has other ones, or ``groups`` name a class that is not there.
    """
    for name in dataset_names:
        try:
            ensure_metadata(name)
        except (FileNotFoundError, ValueError) as error:
            logger.warning("The class names of %s are not known. %s", name, error)
            continue
        return _classes_of(name, num_classes, groups, count_from)
    logger.warning(
        "No class names: DATASETS.TEST and DATASETS.TRAIN name no dataset that can be read. The "
        "classes are shown by their numbers, from 0, and their frequency groups as unknown."
    )
    return ClassInfo(
        tuple(map(str, range(num_classes))),
        np.arange(num_classes),
        groups or FrequencyGroups.lvis(),
        np.full(num_classes, -1),
    )


def _classes_of(
    name: str, num_classes: int, groups: FrequencyGroups | None, count_from: str | None
) -> ClassInfo:
    metadata = MetadataCatalog.get(name)
    names = tuple(metadata.thing_classes)
    if len(names) != num_classes:
        raise ValueError(
            f"The dataset {name} has {len(names)} classes, and the model {num_classes}: name the "
            "dataset that the model was trained on, or none, as DATASETS.TEST."
        )
    counted = count_from or name
    ensure_metadata(counted)
    if tuple(MetadataCatalog.get(counted).thing_classes) != names:
        raise ValueError(f"TEST.COUNT_FROM {counted} has other classes than {name}.")
    if groups is None and "rare_max" in metadata.as_dict():
        groups = FrequencyGroups.lvis(metadata.rare_max, metadata.common_max)
    groups = groups or FrequencyGroups.lvis()
    ids = category_ids(metadata)
    return ClassInfo(names, ids, groups, _group_indices(counted, names, ids, groups))


def _group_indices(
    dataset_name: str, names: Sequence[str], ids: np.ndarray, groups: FrequencyGroups
) -> np.ndarray:
    metadata = MetadataCatalog.get(dataset_name)
    counts = metadata.get("class_image_count")
    if groups.members is None and counts is None:
        logger.warning(
            "The frequency groups are shown as unknown: %s gives no image counts of its classes.",
            dataset_name,
        )
        return np.full(len(names), -1)
    categories = [{"id": i, "name": name} for i, name in zip(ids.tolist(), names, strict=True)]
    by_class = sorted(counts or (), key=lambda count: count["id"])
    for category, count in zip(categories, by_class, strict=False):
        category["image_count"] = count["image_count"]
    frequencies = metadata.get("class_frequency", ())
    for category, frequency in zip(categories, frequencies, strict=False):
        category["frequency"] = frequency
    return groups.assign(categories)


def class_thresholds(text: str, classes: ClassInfo) -> np.ndarray:
    """The least score of each class that counts.

    Args:
        text: one number for all, ``0.5``; or one for each frequency group, ``r:0.1,c:0.2,f:0.4``. A
            number without a group is for all the others: ``r:0.1,0.4``.
        classes: the classes.

    Returns:
        (K,) float64.

    Raises:
        ValueError: the text is no such list, names an unknown group, or leaves out classes.
    """
    by_group: dict[str, float] = {}
    for part in text.split(","):
        group, _, number = part.rpartition(":")
        group = group.strip()
        try:
            threshold = float(number)
        except ValueError:
            threshold = -1.0
        if not 0 <= threshold <= 1 or group in by_group:
            raise ValueError(
                f"The confidence threshold {text!r} is neither a number from 0 to 1, such as 0.5, "
                "nor one for each frequency group, such as r:0.1,c:0.2,f:0.4."
            )
        by_group[group] = threshold
    known = classes.groups.names
    unknown = by_group.keys() - {"", *known}
    if unknown:
        raise ValueError(
            f"The confidence threshold {text!r} names the frequency group {min(unknown)!r}: the "
            f"groups are {', '.join(known)}."
        )
    others = by_group.get("", np.nan)
    of_group = np.array([*(by_group.get(name, others) for name in known), others])
    thresholds = of_group[classes.group_indices]
    if np.isnan(thresholds).any():
        index = classes.group_indices[np.isnan(thresholds)][0]
        which = f"the group {known[index]}" if index >= 0 else "classes of no known group"
        raise ValueError(
            f"The confidence threshold {text!r} leaves out {which}: add a number without a group, "
            f"such as {text},0.5, which is for all the others."
        )
    return thresholds
