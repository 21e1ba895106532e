"""The classes of a model: names, frequency groups and score thresholds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog

from ..data import ensure_metadata
from ..errors import UserError
from ..evaluation import FrequencyGroups
from ..evaluation.evaluator import category_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ClassInfo:
    """The K classes of a model.

    Attributes:
        names: the class names.
        category_ids: (K,) int64, the category ids in result files.
        groups: the frequency groups.
        group_indices: (K,) int64, the index of each class's group in ``groups.names``; -1 if
            unknown.
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
    """Return the classes of the first dataset that can be read.

    If none can be read, names and ids are the class indices, from 0, and the groups are unknown.

    Args:
        dataset_names: names of datasets. One that is not registered, or whose file is missing or
            broken, is skipped with a warning.
        num_classes: K, the model's number of classes.
        groups: the frequency groups. None: LVIS's, with the dataset's thresholds.
        count_from: a registered dataset with the same classes to take the image counts from. None:
            the dataset itself.

    Raises:
        UserError: the dataset does not have K classes; ``count_from`` cannot be read or has other
            classes; or ``groups`` name an unknown class.
    """
    for name in dataset_names:
        try:
            ensure_metadata(name)
        except (FileNotFoundError, ValueError) as error:
            logger.warning("The class names of %s are unknown. %s", name, error)
            continue
        return _classes_of(name, num_classes, groups, count_from)
    logger.warning(
        "The class names are unknown: no test or training set of the config can be read. Classes "
        "are shown as indices, from 0, and their frequency groups as unknown."
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
        raise UserError(
            f"The dataset {name} has {len(names)} classes, but the model has {num_classes}: set "
            "DATASETS.TEST (dataloader.test.dataset.names) to a dataset with the model's classes."
        )
    counted = count_from or name
    ensure_metadata(counted)
    if tuple(MetadataCatalog.get(counted).thing_classes) != names:
        raise UserError(f"TEST.COUNT_FROM {counted} does not have the classes of {name}.")
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
            "The frequency groups are shown as unknown: %s has no image counts.", dataset_name
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
    """Return the score threshold of each class.

    Args:
        text: one threshold for all classes, ``0.5``; or one for each frequency group,
            ``r:0.1,c:0.2,f:0.4``. A number without a group applies to all other groups:
            ``r:0.1,0.4``.
        classes: the classes.

    Returns:
        (K,) float64.

    Raises:
        UserError: the text is not valid, names an unknown group, or omits a group.
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
            raise UserError(
                f"Invalid confidence threshold {text!r}; expected a number from 0 to 1, e.g. 0.5, "
                "or one for each frequency group, e.g. r:0.1,c:0.2,f:0.4."
            )
        by_group[group] = threshold
    known = classes.groups.names
    unknown = by_group.keys() - {"", *known}
    if unknown:
        raise UserError(
            f"Unknown frequency group {min(unknown)!r} in the confidence threshold {text!r}; the "
            f"groups are {', '.join(known)}."
        )
    others = by_group.get("", np.nan)
    of_group = np.array([*(by_group.get(name, others) for name in known), others])
    thresholds = of_group[classes.group_indices]
    if np.isnan(thresholds).any():
        index = classes.group_indices[np.isnan(thresholds)][0]
        which = f"the group {known[index]}" if index >= 0 else "classes of unknown group"
        raise UserError(
            f"The confidence threshold {text!r} omits {which}. Add a number without a group for "
            f"all other groups, e.g. {text},0.5."
        )
    return thresholds
