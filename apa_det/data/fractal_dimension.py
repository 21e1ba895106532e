"""Fractal dimensions: how evenly the boxes of each class spread over the image."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..errors import MissingFileError, UserError
from ..utils.json_files import local_path
from ..utils.progress import heartbeat
from .class_counts import require_datasets
from .class_names import category_ids
from .lvis_format import registered_packed
from .packed import PackedDataset, from_hundredths
from .validation import read_coco_or_lvis_json

logger = logging.getLogger(__name__)

MAX_GRID = 64
MIN_BOXES = 4  # the fit of a slope needs two grids, 1 x 1 and 2 x 2


def fractal_dimensions(
    centers: np.ndarray, image_sizes: np.ndarray, classes: np.ndarray, num_classes: int
) -> np.ndarray:
    """Return the fractal dimension Φ of the box centers of each class, by box counting.

    "Fractal Calibration for long-tailed object detection" (Alexandridis et al., CVPR 2025). The
    image is divided into grids of 1 x 1 to 64 x 64 cells, which include their left and upper edges.
    Φ is the slope of a line fitted by least squares to log N(d) over log d, where N(d) of the d x d
    cells contain a center of the class, for all d with d² <= number of boxes of the class.

    Args:
        centers: (N, 2), x and y in pixels. Centers outside the image are in no cell.
        image_sizes: (N, 2), width and height of the image of each box.
        classes: (N,) integers in [0, K).
        num_classes: K.

    Returns:
        (K,) float64, at least 1. Classes with fewer than 4 boxes get 1.
    """
    counts = np.bincount(classes, minlength=num_classes)
    order = np.argsort(-counts, kind="stable")
    counts = counts[order]  # descending, so that the classes that a grid needs come first
    ranks = np.argsort(order)[classes]
    inside = ((centers >= 0) & (centers < image_sizes)).all(axis=1)
    rows = np.flatnonzero(inside)[np.argsort(ranks[inside], kind="stable")]
    ranks, (x, y), (width, height) = ranks[rows], centers[rows].T.copy(), image_sizes[rows].T.copy()
    grids = np.arange(1, MAX_GRID + 1)
    log_cells = np.zeros((num_classes, MAX_GRID))
    for d in grids.tolist():
        kept = np.count_nonzero(counts >= d * d)
        part = slice(np.searchsorted(ranks, kept))
        # x * d / width is exact on the edges of cells, x / width * d is not.
        column, row = (
            np.minimum(values[part] * d / sides[part], d - 1).astype(np.int64)
            for values, sides in ((x, width), (y, height))
        )
        occupied = np.zeros(kept * d * d, bool)
        occupied[(ranks[part] * d + row) * d + column] = True
        number = occupied.reshape(kept, d * d).sum(axis=1)
        log_cells[:kept, d - 1] = np.log(number.clip(min=1))
    fitted = grids**2 <= counts[:, None]
    x = np.where(fitted, np.log(grids), 0)
    x -= fitted * (x.sum(axis=1) / fitted.sum(axis=1).clip(min=1))[:, None]
    slopes = (x * log_cells).sum(axis=1) / np.where(counts < MIN_BOXES, 1, (x**2).sum(axis=1))
    dimensions = np.empty(num_classes)
    dimensions[order] = np.where(counts < MIN_BOXES, 1, slopes.clip(min=1))
    return dimensions


@dataclass(frozen=True, eq=False)
class ClassBoxes:
    """The box centers of a dataset. Crowd regions count as boxes.

    Attributes:
        categories: ids and names of the K classes, in their order.
        num_images: number of images, with and without annotations.
        centers: (N, 2) float64, in pixels.
        image_sizes: (N, 2) int64, width and height of the image of each box.
        classes: (N,) int64, indices into ``categories``.
        image_counts: (K,) int64, the images with each class.
    """

    categories: dict[int, str]
    num_images: int
    centers: np.ndarray
    image_sizes: np.ndarray
    classes: np.ndarray
    image_counts: np.ndarray


def read_class_boxes(json_file: str | os.PathLike, ids: Sequence[int] | None = None) -> ClassBoxes:
    """Read the boxes of a file in LVIS or COCO format. The last files read are cached.

    Args:
        json_file: the file.
        ids: its category ids, in the order of the classes. None: in ascending order.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is invalid, or has other categories.
    """
    status = os.stat(local_path(json_file))
    ids = None if ids is None else tuple(ids)
    return _read(os.fspath(json_file), ids, status.st_mtime_ns, status.st_size)


def shares_and_dimensions(dataset_names: Sequence[str]) -> Tensor:
    """Return the image share and the fractal dimension of each class.

    They are computed from the annotation files of the datasets together, and cached in memory.

    Args:
        dataset_names: registered datasets with the same classes, in LVIS or COCO format, already
            loaded.

    Returns:
        float32, shape (K, 2), by contiguous id: the share of the images that contain the class,
        where zero images are treated as 1; and :func:`fractal_dimensions`.

    Raises:
        UserError: a dataset names no file or an invalid one, or the datasets have different
            classes.
        MissingFileError: the file of a dataset does not exist.
    """
    require_datasets(dataset_names)
    parts = []
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file") is None:
            raise UserError(
                f"Fractal dimensions need the annotation file of the dataset {name}, which its "
                "metadata do not name. Register the dataset with DATASETS.LVIS_FORMAT."
            )
        try:
            ids = category_ids(metadata).tolist()
            packed = registered_packed(name)
            if packed is None:
                parts.append(read_class_boxes(metadata.json_file, ids))
            else:
                parts.append(_class_boxes(packed, metadata.json_file, tuple(ids)))
        except MissingFileError as error:
            raise MissingFileError(
                f"Fractal dimensions need the annotation file of the dataset {name}: {error}"
            ) from error
    if len({tuple(part.categories.values()) for part in parts}) != 1:
        raise UserError(f"The datasets {', '.join(dataset_names)} have different classes.")
    return _shares_and_dimensions(*parts)


@lru_cache(maxsize=2)
def _class_boxes(packed: PackedDataset, json_file: str, ids: tuple[int, ...]) -> ClassBoxes:
    categories = _ordered_categories(packed.categories, json_file, ids)
    if not len(packed.image_ids):
        raise UserError(f"{json_file} has no images: use the annotations of a training set.")
    class_of = {category_id: i for i, category_id in enumerate(categories)}
    order = np.array([class_of[category["id"]] for category in packed.categories], np.int64)
    counts, _ = packed.count_categories()
    boxes = from_hundredths(packed.boxes)
    return ClassBoxes(
        categories,
        len(packed.image_ids),
        boxes[:, :2] + boxes[:, 2:] / 2,
        np.repeat(packed.sizes[:, ::-1].astype(np.int64), np.diff(packed.starts), axis=0),
        order[packed.categories_of],
        np.array([counts[category_id] for category_id in categories], np.int64),
    )


def _ordered_categories(
    categories: list[dict], json_file: str, ids: tuple[int, ...] | None
) -> dict[int, str]:
    names = dict(sorted((c["id"], c["name"]) for c in categories))
    if ids is not None and names.keys() != {*ids}:
        raise UserError(
            f"{json_file} has other categories than its registered dataset: register it again."
        )
    return names if ids is None else {i: names[i] for i in ids}


@lru_cache(maxsize=2)
def _read(json_file: str, ids: tuple[int, ...] | None, *version: int) -> ClassBoxes:
    logger.info("Reading the boxes of %s", json_file)
    dataset = read_coco_or_lvis_json(json_file)
    categories = _ordered_categories(dataset["categories"], json_file, ids)
    images, annotations = dataset["images"], dataset["annotations"]
    if not images:
        raise UserError(f"{json_file} has no images: use the annotations of a training set.")
    class_of = {category_id: i for i, category_id in enumerate(categories)}
    image_of = {image["id"]: i for i, image in enumerate(images)}
    classes, rows = (
        np.fromiter((index[a[key]] for a in annotations), np.int64, len(annotations))
        for index, key in ((class_of, "category_id"), (image_of, "image_id"))
    )
    sizes = np.array([(image["width"], image["height"]) for image in images], np.int64)
    values = chain.from_iterable(a["bbox"] for a in annotations)
    boxes = np.fromiter(values, np.float64, 4 * len(annotations)).reshape(-1, 4)
    pairs = np.unique(rows * len(categories) + classes)
    return ClassBoxes(
        categories,
        len(images),
        boxes[:, :2] + boxes[:, 2:] / 2,
        sizes[rows],
        classes,
        np.bincount(pairs % len(categories), minlength=len(categories)),
    )


@lru_cache(maxsize=2)
@heartbeat("Measuring the fractal dimension of each class")
def _shares_and_dimensions(*parts: ClassBoxes) -> Tensor:
    centers, sizes, classes = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("centers", "image_sizes", "classes")
    )
    counts = sum(part.image_counts for part in parts).clip(min=1)
    shares = counts / sum(part.num_images for part in parts)
    dimensions = fractal_dimensions(centers, sizes, classes, len(counts))
    return torch.from_numpy(np.stack([shares, dimensions], axis=1)).float()
