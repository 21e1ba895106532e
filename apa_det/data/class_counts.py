"""Class frequencies of the training datasets, from their metadata."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..errors import UserError
from .faults import Fault
from .records import MAX_NUMBER, integers
from .sampling.counts import groups_by_count

ClassCount = Literal["image_count", "instance_count"]

# Training images with instances: missing in detectron2's built-in metadata.
_NUM_IMAGES = {"lvis_v1_train": 99_388}
_FIX = (
    "Register its LVIS-format file with DATASETS.LVIS_FORMAT, or remove the setting that needs it "
    "(MODEL.ROI_BOX_HEAD.CLASS_LOSS, CLASS_WEIGHTS, USE_DROP_LOSS, USE_FED_LOSS, REPLAY or "
    "CALIBRATION)."
)


def class_counts(dataset_names: Sequence[str], kind: ClassCount = "image_count") -> Tensor:
    """Return the number of training images or instances of each class, summed over datasets.

    The counts are ``class_image_count`` of the datasets' metadata. detectron2's built-in LVIS
    datasets provide image counts; datasets of :func:`apa_det.data.register_lvis_format` also
    provide instance counts.

    Args:
        dataset_names: registered datasets with the same classes, already loaded.
        kind: "image_count" (images with the class) or "instance_count".

    Returns:
        int64, shape (K,), by contiguous id.

    Raises:
        UserError: invalid ``kind``, missing counts, or datasets with different classes.
    """
    if kind not in get_args(ClassCount):
        kinds = ", ".join(get_args(ClassCount))
        raise UserError(f"MODEL.ROI_BOX_HEAD.CLASS_COUNT must be one of {kinds}; got {kind!r}.")
    require_datasets(dataset_names)
    counts = []
    for name in dataset_names:
        by_class = MetadataCatalog.get(name).get("class_image_count")
        if by_class is None or any(kind not in c for c in by_class):
            raise UserError(
                f"The dataset {name} does not give the {kind.replace('_', ' ')} of each class. "
                f"{_FIX}"
            )
        values = [c[kind] for c in sorted(by_class, key=lambda c: c["id"])]
        try:
            counts.append(integers(values, kind, "be an integer >= 0", low=0, high=MAX_NUMBER))
        except Fault as fault:
            raise UserError(f"class_image_count of the dataset {name}: {fault}.") from fault
    if len({len(c) for c in counts}) != 1:
        raise UserError(f"The datasets {', '.join(dataset_names)} have different classes.")
    return torch.from_numpy(np.sum(counts, axis=0))


def check_num_classes(values: Tensor, num_classes: int, user: str) -> Tensor:
    """Return ``values`` if they have shape (K, ...).

    Args:
        values: values per class of the training datasets.
        num_classes: K, the number of classes of the model.
        user: what needs the values, for the message.

    Raises:
        UserError: the training datasets have another number of classes.
    """
    if len(values) != num_classes:
        raise UserError(
            f"{user} got class frequencies of {len(values)} classes for a predictor of "
            f"{num_classes}. Set MODEL.ROI_HEADS.NUM_CLASSES, or that of MODEL.RETINANET, to the "
            "number of the training dataset."
        )
    return values


def get_scarce_classes(dataset_names: Sequence[str], threshold: float = 0.0011) -> Tensor:
    """Return a mask of the classes that occur in less than a fraction of the annotated images.

    The image counts are those of :func:`class_counts`. The number of annotated images is
    ``num_images`` of the datasets' metadata, summed over datasets.

    Args:
        dataset_names: registered datasets with the same classes, already loaded.
        threshold: the fraction. 0.0011, as published for DropLoss, is 109 images of LVIS v1.

    Returns:
        bool, shape (K,), by contiguous id.

    Raises:
        UserError: missing counts, or datasets with different classes.
    """
    require_datasets(dataset_names)
    total = 0
    for name in dataset_names:
        num_images = MetadataCatalog.get(name).get("num_images", _NUM_IMAGES.get(name))
        if num_images is None:
            raise UserError(
                f"The dataset {name} does not give its number of annotated images, num_images. "
                f"{_FIX}"
            )
        total += num_images
    return class_counts(dataset_names) / total < threshold


def get_classes_of_groups(
    dataset_names: Sequence[str], groups: Sequence[str], max_count: int = 0
) -> Tensor:
    """Return a mask of the classes in some frequency groups, or with few images.

    Args:
        dataset_names: registered datasets with the same classes, already loaded.
        groups: names of groups, "r", "c" or "f"; see
            :func:`apa_det.data.sampling.counts.groups_by_count`.
        max_count: if not 0, the classes are those in at most this many images instead.

    Returns:
        bool, shape (K,), by contiguous id.

    Raises:
        UserError: missing counts, or datasets with different classes.
    """
    counts = class_counts(dataset_names)
    if max_count:
        return counts <= max_count
    names = groups_by_count(counts.tolist(), dataset_names)
    return torch.tensor([name in groups for name in names])


def class_names(dataset_names: Sequence[str]) -> list[str]:
    """Return the class names by contiguous id: ``thing_classes`` of the first dataset.

    Raises:
        UserError: there is no dataset, or its metadata lack the names.
    """
    require_datasets(dataset_names)
    names = MetadataCatalog.get(dataset_names[0]).get("thing_classes")
    if names is None:
        raise UserError(f"The dataset {dataset_names[0]} does not give the names of its classes.")
    return names


def require_datasets(dataset_names: Sequence[str]) -> None:
    """Raise a UserError if there is no dataset."""
    if not dataset_names:
        raise UserError(
            "Class frequencies need a training dataset: name one in DATASETS.TRAIN, or pass "
            "datasets to the class loss."
        )
