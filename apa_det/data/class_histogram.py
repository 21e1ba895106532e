"""Log how many instances each class has, briefly for many classes."""

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.data.build import print_instances_class_histogram
from detectron2.utils.logger import log_first_n
from tabulate import tabulate

from ..errors import UserError
from .class_names import dataset_categories, dataset_groups
from .dataset_records import DatasetRecords
from .lvis_format import registered_metadata

MAX_LISTED = 100
"""More classes than this are not listed one by one."""

_NUM_EXTREMES = 10
_MAX_NAME = 30  # characters


def log_class_histogram(
    name: str, records: DatasetRecords | list[dict], class_names: Sequence[str]
) -> None:
    """Log the number of instances of each class of a dataset, once; crowd regions do not count.

    For more than :data:`MAX_LISTED` classes, it is the number of classes and instances in each
    frequency group, and the classes with the most and the fewest instances. Otherwise it is
    detectron2's table.

    Args:
        name: a registered dataset; the frequency groups are its own.
        records: dataset dicts.
        class_names: by contiguous id.

    Raises:
        UserError: there is an instance of a class without a name.
    """
    number = len(class_names)
    if number <= MAX_LISTED and not isinstance(records, DatasetRecords):
        return print_instances_class_histogram(records, class_names)
    owners, classes = _instances(records)
    if number <= MAX_LISTED:
        of_class = [{"category_id": i} for i in range(number)]
        instances = [of_class[i] for i in classes.tolist()]
        return print_instances_class_histogram([{"annotations": instances}], class_names)
    unknown = classes[(classes < 0) | (classes >= number)]
    if len(unknown):
        raise UserError(
            f"category_id in the dataset dicts of {name} must be from 0 to {number - 1}, as there "
            f"are {number} thing_classes; got {unknown[0]}."
        )
    counts = np.bincount(classes, minlength=number)
    pairs = np.unique(owners * number + classes)
    groups = _by_group(name, counts, np.bincount(pairs % number, minlength=number))
    present = np.where(counts, counts, np.nan)
    text = (
        f"{counts.sum():,} instances of {number:,} classes in {name}{groups}; "
        f"{(counts == 0).sum():,} classes have none. The others with the most and the fewest:\n"
        f"{extremes_table(class_names, present, '#instances', '{:,.0f}')}"
    )
    log_first_n(logging.INFO, text, name=__name__, key="message")


def extremes_table(names: Sequence[str], values: np.ndarray, title: str, number: str) -> str:
    """Tabulate the 10 largest and the 10 smallest values, and the classes that have them.

    Args:
        names: K class names.
        values: shape (K,); NaN is left out.
        title: column header of the values.
        number: format of a value, e.g. "{:,}".
    """
    order = np.argsort(-values, kind="stable")
    order = order[~np.isnan(values[order])]
    largest, smallest = order[:_NUM_EXTREMES], order[: -_NUM_EXTREMES - 1 : -1]
    rows = [
        [cell for i in pair for cell in (_short(names[i]), number.format(values[i]))]
        for pair in zip(largest.tolist(), smallest.tolist(), strict=True)
    ]
    headers = [f"{len(rows)} largest", title, f"{len(rows)} smallest", title]
    align = ("left", "right") * 2
    return tabulate(rows, headers, "pipe", colalign=align, disable_numparse=True)


def _instances(records: DatasetRecords | list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the class of each instance, both as indices."""
    if isinstance(records, DatasetRecords):
        return records.owners, records.classes
    pairs = [
        (i, instance["category_id"])
        for i, record in enumerate(records)
        for instance in record.get("annotations", ())
        if not instance.get("iscrowd")
    ]
    return tuple(np.array(pairs, np.int64).reshape(-1, 2).T)


def _by_group(name: str, instances: np.ndarray, images: np.ndarray) -> str:
    """Return the number of instances and classes of each group of a dataset, for a sentence."""
    if registered_metadata(name).get("evaluator_type") not in ("lvis", "coco", "v3det"):
        return ""
    categories = dataset_categories(name)
    for category, count in zip(categories, images.tolist(), strict=True):
        category.setdefault("image_count", count)
    groups = dataset_groups(name)
    indices = groups.assign(categories)
    parts = [
        f"{instances[indices == i].sum():,} of {(indices == i).sum():,} {label}"
        for i, label in enumerate(groups.labels)
    ]
    return f": {', '.join(parts)} classes"


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 2]}.."
