"""How often the classes occur in the training datasets, by their metadata."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

__all__ = ["ClassCount", "class_counts", "class_names", "get_scarce_classes"]

ClassCount = Literal["image_count", "instance_count"]

# Training pictures with instances. The built-in metadata give the image count of each class, but
# not the total.
_NUM_IMAGES = {"lvis_v1_train": 99_388}
_MEND = (
    "register its LVIS-format file with DATASETS.LVIS_FORMAT, or leave out what goes by it "
    "(MODEL.ROI_BOX_HEAD.CLASS_LOSS, CLASS_WEIGHTS, USE_DROP_LOSS, USE_FED_LOSS or CALIBRATION)."
)


def class_counts(dataset_names: Sequence[str], kind: ClassCount = "image_count") -> Tensor:
    """The training pictures, or instances, of each class, summed over datasets.

    They are ``class_image_count`` of the datasets' metadata, as detectron2's LVIS and the datasets
    of :func:`apa_det.data.register_lvis_format` have it. detectron2's own has no instance counts.

    Args:
        dataset_names: registered datasets of the same classes, which have been read.
        kind: "image_count", the pictures with the class, or "instance_count".

    Returns:
        int64, shape (K,), by contiguous id.

    Raises:
        ValueError: the metadata of a dataset lack the counts, or datasets have other classes, or
            there is no such kind.
    """
    if kind not in get_args(ClassCount):
        kinds = " or ".join(get_args(ClassCount))
        raise ValueError(f"MODEL.ROI_BOX_HEAD.CLASS_COUNT is {kinds}, not {kind!r}.")
    _require_datasets(dataset_names)
    counts, words = [], kind.replace("_", " ")
    for name in dataset_names:
        by_class = MetadataCatalog.get(name).get("class_image_count")
        if by_class is None or any(kind not in c for c in by_class):
            raise ValueError(f"The dataset {name} does not give the {words} of each class: {_MEND}")
        counts.append([c[kind] for c in sorted(by_class, key=lambda c: c["id"])])
    if len({len(c) for c in counts}) != 1:
        raise ValueError(f"The datasets {', '.join(dataset_names)} have different classes.")
    return torch.tensor(counts).sum(dim=0)


def get_scarce_classes(dataset_names: Sequence[str], threshold: float = 0.0011) -> Tensor:
    """The classes with instances in less than a share of the pictures.

    The image counts are those of :func:`class_counts`. The pictures are ``num_images`` of the
    datasets' metadata, those with instances, summed too.

    Args:
        dataset_names: registered datasets of the same classes, which have been read.
        threshold: the share. The published 0.0011 of DropLoss is 109 pictures of LVIS v1.

    Returns:
        Boolean, shape (K,), by contiguous id.

    Raises:
        ValueError: the metadata of a dataset lack a count, or datasets have other classes.
    """
    _require_datasets(dataset_names)
    total = 0
    for name in dataset_names:
        num_images = MetadataCatalog.get(name).get("num_images", _NUM_IMAGES.get(name))
        if num_images is None:
            raise ValueError(
                f"The dataset {name} does not give its number of pictures, num_images: {_MEND}"
            )
        total += num_images
    return class_counts(dataset_names) / total < threshold


def class_names(dataset_names: Sequence[str]) -> list[str]:
    """The names of the classes, by contiguous id: ``thing_classes`` of the first dataset.

    Raises:
        ValueError: there is no dataset, or it does not tell.
    """
    _require_datasets(dataset_names)
    names = MetadataCatalog.get(dataset_names[0]).get("thing_classes")
    if names is None:
        raise ValueError(f"The dataset {dataset_names[0]} does not give the names of its classes.")
    return names


def _require_datasets(dataset_names: Sequence[str]) -> None:
    if not dataset_names:
        raise ValueError(
            "The frequencies of classes need a training dataset: name one in DATASETS.TRAIN, or "
            "give the class loss its datasets."
        )
