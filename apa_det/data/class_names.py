"""The classes of registered datasets, and how those of a model are found in them: by name."""

import logging
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ..errors import UserError
from ..text import listed
from .frequency import FrequencyGroups
from .lvis_format import ensure_metadata, registered_metadata, set_class_order
from .name_matching import match_names
from .validation import read_categories

logger = logging.getLogger(__name__)

_JSON_TYPES = ("lvis", "coco", "v3det")  # evaluators of datasets whose json_file has categories


def dataset_class_names(name: str) -> list[str] | None:
    """Return the class names of a registered dataset, by contiguous id; None if it has none.

    Of a dataset that has not been loaded, only the categories are read.

    Raises:
        UserError: no dataset has this name, or see :func:`read_categories`.
    """
    metadata = registered_metadata(name)
    names = metadata.get("thing_classes") or metadata.get("class_order")
    if names is None and metadata.get("evaluator_type") in _JSON_TYPES and _json_file(metadata):
        names = [category["name"] for category in read_categories(metadata.json_file)]
    elif names is None:
        DatasetCatalog.get(name)
        names = metadata.get("thing_classes")
    return None if names is None else list(names)


def category_ids(metadata: Metadata) -> np.ndarray:
    """Return (K,) int64, the category id of each class of a dataset, by contiguous id."""
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    if contiguous is None:  # detectron2's own LVIS datasets
        return np.arange(1, len(metadata.thing_classes) + 1)
    return np.array(sorted(contiguous, key=contiguous.get), np.int64)


def dataset_categories(name: str) -> list[dict]:
    """Return ``id``, ``name`` and, where known, ``image_count`` and ``frequency`` of each class.

    They are those of the dataset's file. The image counts that it lacks are those of its metadata.

    Args:
        name: a registered dataset.

    Returns:
        One dict per class, by contiguous id; none if the dataset has no class names.
    """
    ensure_metadata(name)
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    if not names:
        return []
    ids = category_ids(metadata).tolist()
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    counts = sorted(metadata.get("class_image_count") or (), key=lambda count: count["id"])
    for category, count in zip(categories, counts, strict=False):
        category["image_count"] = count["image_count"]
    in_file = {}
    if metadata.get("evaluator_type") in _JSON_TYPES and _json_file(metadata):
        in_file = {category["id"]: category for category in read_categories(metadata.json_file)}
    for category in categories:
        known = in_file.get(category["id"], {})
        category |= {key: known[key] for key in ("image_count", "frequency") if key in known}
    return categories


def dataset_groups(name: str) -> FrequencyGroups:
    """Return the groups r, c and f of a registered dataset, with its own thresholds, if any."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("rare_max") is None:
        return FrequencyGroups.lvis()
    return FrequencyGroups.lvis(metadata.rare_max, metadata.common_max)


def map_classes(dataset_name: str, names: Sequence[str]) -> np.ndarray | None:
    """Find the classes of a model in a dataset, by name.

    Names that differ only in case, underscores, hyphens or spaces match with a warning. Those of
    LVIS also match by the first of their ``synonyms``, which is the name in detectron2's metadata.

    Args:
        dataset_name: a registered dataset, which may have only some of the model's classes.
        names: the names of the K classes of the model.

    Returns:
        (K,) int64, the contiguous id in the dataset of each class; -1: not in the dataset. None:
        the dataset has the same classes in the same order, or no class names.

    Raises:
        UserError: the dataset has classes that the model does not have, or a name is ambiguous.
    """
    own = dataset_class_names(dataset_name)
    if own is None or own == list(names):
        return None
    _require_unique(own, f"The dataset {dataset_name}")
    _require_unique(names, "The model")
    matches = match_names(own, names)
    if None in matches:
        matches = _match_synonyms(dataset_name, matches, names)
    unknown = [name for name, match in zip(own, matches, strict=True) if match is None]
    if unknown:
        raise UserError(
            f"The dataset {dataset_name} has {_counted(unknown)} that the model does not have: "
            f"{listed(unknown)}. Classes go by name: rename them in its file, or remove them "
            f"there; the model has {listed(names)}."
        )
    close = [f"{own[i]} is {names[j]}" for i, j in enumerate(matches) if own[i] != names[j]]
    if close:
        logger.warning(
            "%d of the classes of %s have similar names in the model: %s.",
            *(len(close), dataset_name, listed(close)),
        )
    indices = np.full(len(names), -1)
    indices[matches] = np.arange(len(own))
    return indices


def align_training_sets(
    dataset_names: Sequence[str], names: Sequence[str] | None = None
) -> list[str] | None:
    """Give training sets the same order of classes: that of the first, or a given one.

    Datasets in LVIS format are changed to that order.

    Args:
        dataset_names: registered datasets.
        names: the class names of the model. None: those of the first dataset.

    Returns:
        The class names; None if the first dataset has none.

    Raises:
        UserError: the datasets have different classes, or another dataset has another order.
    """
    first = "the model"
    for name in dataset_names:
        own = dataset_class_names(name)
        if names is None:
            names, first = own, name
        if names is None or own is None or own == list(names):
            continue
        extra, missing = (
            [n for n in a if n not in b] for a, b in ((own, {*names}), (names, {*own}))
        )
        if extra or missing:
            different = [
                f"only {where} has {listed(some)}"
                for where, some in ((name, extra), (first, missing))
                if some
            ]
            raise UserError(
                f"The training set {name} must have the classes of {first}, but "
                f"{' and '.join(different)}. Classes go by name: use the same names in all files."
            )
        if "rare_max" not in MetadataCatalog.get(name).as_dict():
            raise UserError(
                f"The training set {name} must have its classes in the order of {first}. Register "
                "its file in LVIS format with DATASETS.LVIS_FORMAT (dataloader.lvis_format in a "
                "LazyConfig), which allows any order."
            )
        set_class_order(name, names)
    return None if names is None else list(names)


def _counted(names: Sequence[str]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names)} classes"


def _json_file(metadata: Metadata) -> str | None:
    path = metadata.get("json_file")
    builtin = metadata.get("thing_classes") is not None and not os.path.isfile(path or "")
    return None if builtin else path


def _require_unique(names: Sequence[str], owner: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(
            f"{owner} has {_counted(repeated)} of the same name as another: {listed(repeated)}. "
            "Classes go by name: rename them."
        )


def _match_synonyms(
    dataset_name: str, matches: list[int | None], names: Sequence[str]
) -> list[int | None]:
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") != "lvis" or not _json_file(metadata):
        return matches
    ensure_metadata(dataset_name)
    in_file = {category["id"]: category for category in read_categories(metadata.json_file)}
    free = {name: i for i, name in enumerate(names) if i not in {*matches}}
    result = []
    for match, category_id in zip(matches, category_ids(metadata).tolist(), strict=True):
        category = in_file.get(category_id, {})
        synonyms = category.get("synonyms")
        others = [category.get("name"), *(synonyms[:1] if isinstance(synonyms, list) else ())]
        if match is None:
            match = next((free.pop(n) for n in others if isinstance(n, str) and n in free), None)
        result.append(match)
    return result
