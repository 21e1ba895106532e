"""A subset of images to evaluate."""

import os

import numpy as np

from ..data import records as contract
from ..data.faults import Fault, column, convert
from ..errors import UserError
from ..text import shown
from ..utils.json_files import open_json, read_json
from .ground_truth import GroundTruth
from .selection import find

_EXPECTED = (
    "image ids as a JSON list, as text with an id per line, or as an annotation file in LVIS or "
    "COCO format"
)


def read_image_ids(path: str | os.PathLike, ground_truth: GroundTruth) -> np.ndarray:
    """Read a list of images of a dataset, e.g. of LVIS minival.

    Args:
        path: a JSON list of image ids; text with ids separated by white space or commas; or an
            annotation file in LVIS or COCO format, whose images are taken. JSON may be in a gzip or
            zip archive.
        ground_truth: the dataset.

    Returns:
        (N,) int64 image ids, ascending, without repetitions.

    Raises:
        MissingFileError: the file does not exist.
        UserError: it contains something else or nothing, or an image that is not in the dataset.
    """
    with open_json(path) as (file, _):
        start = file.read(1 << 16).lstrip()
        content = None if start.startswith(("[", "{")) else start + file.read()
    if content is None:
        content = read_json(path)
        if isinstance(content, dict):
            content = content.get("images")
    else:
        content = content.replace(",", " ").split()
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must contain {_EXPECTED}.")
    ids = np.unique(convert(content, _ids, f"{path}: image"))
    unknown = ids[find(ids, ground_truth.image_ids) < 0]
    if len(unknown):
        raise UserError(
            f"{path} lists {len(unknown):,} of {len(ids):,} images that are not in the ground "
            f"truth, e.g. id {unknown[0]}. Give the ids of images of the ground truth."
        )
    return ids


def _ids(values: list) -> np.ndarray:
    """Return the ids of a list of integers, of their texts, or of image records."""
    if all(type(value) is dict for value in values):
        values = column(values, "id", "an image needs an id")
    elif all(type(value) is str for value in values):
        try:
            values = [int(value) for value in values]
        except ValueError:
            raise Fault("id", f"must be an integer, got {shown(values[0])}") from None
    return contract.integers(values, "id", "be an integer")


def choose_subset(truth: GroundTruth, num_images: int, seed: int = 0) -> np.ndarray:
    """Choose images so that all frequency groups get about the same number of them.

    The groups take turns. Each picks a random image from its least-covered category; ties go to
    the category with the fewest remaining images. So rare categories are represented. If no group
    has an image left, the rest is drawn at random.

    Args:
        truth: the ground truth.
        num_images: the number of images. All are returned if there are no more.
        seed: the random seed. Equal arguments give equal images.

    Returns:
        (N,) int64 image ids, ascending.
    """
    total = len(truth.image_ids)
    if num_images >= total:
        return truth.image_ids
    order = np.random.default_rng(seed).permutation(total)
    images_of = _images_by_category(truth, order)
    groups = [
        [k for k in np.flatnonzero(truth.category_groups == g).tolist() if images_of[k]]
        for g in range(len(truth.groups.names))
    ]
    categories_of = [[] for _ in range(total)]
    for category, images in enumerate(images_of):
        for image in images:
            categories_of[image].append(category)
    remaining = [len(images) for images in images_of]
    covered = [0] * len(images_of)
    chosen: dict[int, None] = {}
    while len(chosen) < num_images and any(groups):
        for group in groups:
            group[:] = [k for k in group if remaining[k]]
            if not group or len(chosen) == num_images:
                continue
            category = min(group, key=lambda k: (covered[k], remaining[k]))
            image = next(i for i in images_of[category] if i not in chosen)
            chosen[image] = None
            for k in categories_of[image]:
                covered[k] += 1
                remaining[k] -= 1
    others = [i for i in order.tolist() if i not in chosen]
    images = [*chosen, *others[: num_images - len(chosen)]]
    return truth.image_ids[np.sort(images)]


def _images_by_category(truth: GroundTruth, order: np.ndarray) -> list[list[int]]:
    """Return the image indices with counted annotations of each category, in the given order."""
    num_categories = len(truth.category_ids)
    pairs = np.unique(
        truth.annotation_categories[truth.counted] * len(order)
        + np.argsort(order)[truth.annotation_images[truth.counted]]
    )
    categories, ranks = np.divmod(pairs, len(order))
    ends = np.searchsorted(categories, np.arange(1, num_categories))
    return [images.tolist() for images in np.split(order[ranks], ends)]
