"""The classes of a model: names, frequency groups and score thresholds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog

from ..errors import UserError
from ..text import listed
from ..utils.json_files import JSON_SUFFIXES, read_json
from .class_names import dataset_categories, dataset_groups
from .frequency import FrequencyGroups
from .lvis_format import ensure_metadata
from .name_matching import match_names

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
    names: Sequence[str] | None = None,
) -> ClassInfo:
    """Return the classes of a model, with the category ids and groups of a dataset.

    The dataset is the first that can be read and has all classes of the model. If there is none,
    ids are the class indices, from 0, and the groups are unknown.

    Args:
        dataset_names: names of datasets. One that is not registered, or whose file is missing or
            broken, is skipped with a warning.
        num_classes: K, the model's number of classes.
        groups: the frequency groups. None: LVIS's, with the dataset's thresholds.
        count_from: a registered dataset with these classes to take the image counts from. None: the
            dataset itself.
        names: the class names of the model. None: those of the dataset, or the class indices.

    Raises:
        UserError: the names are unknown and the dataset does not have K classes; ``count_from``
            cannot be read or lacks a class; or ``groups`` name an unknown class.
    """
    for dataset_name in dataset_names:
        try:
            ensure_metadata(dataset_name)
        except (FileNotFoundError, ValueError) as error:
            logger.warning("The classes of %s are unknown. %s", dataset_name, error)
            continue
        own = list(MetadataCatalog.get(dataset_name).thing_classes)
        if names is None and len(own) != num_classes:
            raise UserError(
                f"The dataset {dataset_name} has {len(own)} classes, but the model has "
                f"{num_classes}: set DATASETS.TEST (dataloader.test.dataset.names) to a dataset "
                "with the model's classes."
            )
        matches = match_names(own if names is None else names, own)
        if None not in matches:
            return _classes_of(dataset_name, names or own, matches, groups, count_from)
    if names is None:
        logger.warning(
            "The class names are unknown: no test or training set of the config can be read. "
            "Classes are shown as indices, from 0, and their frequency groups as unknown."
        )
    else:
        logger.warning(
            "No test or training set of the config has all classes of the model: category ids are "
            "class indices, from 0, and the frequency groups are shown as unknown."
        )
    return ClassInfo(
        tuple(names or map(str, range(num_classes))),
        np.arange(num_classes),
        groups or FrequencyGroups.lvis(),
        np.full(num_classes, -1),
    )


def _classes_of(
    dataset_name: str,
    names: Sequence[str],
    indices: Sequence[int],
    groups: FrequencyGroups | None,
    count_from: str | None,
) -> ClassInfo:
    """Args: indices: those of the names in the dataset."""
    groups = groups or dataset_groups(dataset_name)
    categories = [dataset_categories(dataset_name)[i] for i in indices]
    ids = np.array([category["id"] for category in categories], np.int64)
    if count_from:
        counted = dataset_categories(count_from)
        matches = match_names(names, [category["name"] for category in counted])
        if None in matches:
            raise UserError(
                f"TEST.COUNT_FROM {count_from} lacks the classes "
                f"{listed(n for n, m in zip(names, matches, strict=True) if m is None)}."
            )
        keys = ("image_count", "frequency")
        categories = [
            {"id": c["id"], "name": c["name"]} | {k: counted[m][k] for k in keys if k in counted[m]}
            for c, m in zip(categories, matches, strict=True)
        ]
    known = all("image_count" in c or groups.file_first and "frequency" in c for c in categories)
    if groups.members is None and not known:
        logger.warning(
            "The frequency groups are shown as unknown: %s has no image counts.",
            count_from or dataset_name,
        )
        return ClassInfo(tuple(names), ids, groups, np.full(len(names), -1))
    return ClassInfo(
        tuple(names), ids, groups, groups.assign([{"image_count": 0, **c} for c in categories])
    )


def class_thresholds(text: str, classes: ClassInfo, default: float | None = None) -> np.ndarray:
    """Return the score threshold of each class.

    Args:
        text: one threshold for all classes, ``0.5``; one for each frequency group,
            ``r:0.1,c:0.2,f:0.4``; or a JSON file ``{class name: threshold}``. A number without a
            group applies to all other groups: ``r:0.1,0.4``.
        classes: the classes.
        default: the threshold of classes that a file omits. None: it must not omit any.

    Returns:
        (K,) float64.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the text or the file is not valid, names an unknown group or class, or omits one.
    """
    if text.endswith(JSON_SUFFIXES):
        return _read_thresholds(text, classes, default)
    by_group = parse_thresholds(text)
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


def parse_thresholds(text: str) -> dict[str, float]:
    """Return the thresholds of ``r:0.1,c:0.2,0.4`` by group; "" for a number without a group.

    Raises:
        UserError: the text is not valid.
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
    return by_group


def _read_thresholds(path: str, classes: ClassInfo, default: float | None) -> np.ndarray:
    by_class = read_json(path)
    if not isinstance(by_class, dict) or not by_class:
        raise UserError(f'{path} must be a JSON object {{"class": threshold, ...}}.')
    for name, value in by_class.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise UserError(f"{path}: {name!r} must be a threshold from 0 to 1, got {value!r}.")
    names = [*by_class]
    matches = match_names(names, classes.names)
    if None in matches:
        unknown = [n for n, match in zip(names, matches, strict=True) if match is None]
        raise UserError(f"{path} has thresholds of unknown classes: {listed(unknown)}.")
    thresholds = np.full(len(classes), np.nan if default is None else default)
    thresholds[matches] = list(by_class.values())
    if np.isnan(thresholds).any():
        missing = [classes.names[i] for i in np.flatnonzero(np.isnan(thresholds))]
        raise UserError(f"{path} omits the classes {listed(missing)}: add their thresholds.")
    return thresholds
