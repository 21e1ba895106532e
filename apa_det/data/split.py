"""Splits of a dataset that keep the class frequencies."""

import heapq
import os
from collections.abc import Collection, Sequence

import numpy as np

from ..errors import UserError
from ..utils.progress import heartbeat
from .coco_to_lvis import copy_counts
from .frequency import COMMON_MAX, RARE_MAX, complete_categories
from .image_names import relative_file_name


def stratify(
    labels: Sequence[Collection[int]], shares: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Assign images to parts so that each class has its share of images in every part.

    Iterative stratification ("On the Stratification of Multi-Label Data", Sechidis et al., ECML
    PKDD 2011, algorithm 1): the class with the fewest images left is distributed first, each image
    to the part that needs most of this class. Unlike there, a class with at least as many images as
    there are parts needs at least one in each.

    Args:
        labels: the classes of each image.
        shares: fraction of the images for each part; they sum to 1.
        seed: of the order of the images, and of ties.

    Returns:
        int64, shape (number of images,), index of the part of each image.
    """
    generator = np.random.default_rng(seed)
    shares = np.asarray(shares, np.float64)
    members: dict[int, list[int]] = {}
    for image in generator.permutation(len(labels)):
        for label in set(labels[image]):
            members.setdefault(label, []).append(image)
    left = {label: len(images) for label, images in members.items()}
    needs = {label: shares * count for label, count in left.items()}
    for label, count in left.items():
        if count >= len(shares):
            needs[label] = np.maximum(needs[label], 1)
    room = shares * len(labels)
    parts = np.full(len(labels), -1, np.int64)

    def assign(image: int, need: np.ndarray) -> None:
        best = np.flatnonzero(need == need.max())
        best = best[room[best] == room[best].max()]
        part = parts[image] = generator.choice(best)
        room[part] -= 1
        for label in set(labels[image]):
            needs[label][part] -= 1
            left[label] -= 1
            heapq.heappush(queue, (left[label], label))

    queue = sorted((count, label) for label, count in left.items())
    while queue:
        count, label = heapq.heappop(queue)
        if count == left[label]:  # else the entry is out of date
            for image in members[label]:
                if parts[image] < 0:
                    assign(image, needs[label])
    for image in generator.permutation(np.flatnonzero(parts < 0)):  # without classes
        assign(image, room)
    _spread(labels, members, parts, shares)
    return parts


def _spread(
    labels: Sequence[Collection[int]],
    members: dict[int, list[int]],
    parts: np.ndarray,
    shares: np.ndarray,
) -> None:
    """Exchange images, in place, so that fewer classes are missing in a part.

    An image may leave a part unless a class would be missing there. Classes with fewer images than
    there are parts stay in a part of the largest share: a training set.
    """
    counts = {
        label: np.bincount(parts[images], minlength=len(shares))
        for label, images in members.items()
    }

    def may_move(image: int, part: int) -> bool:
        old = parts[image]
        return old != part and all(
            counts[label][old] > 1
            if len(members[label]) >= len(shares)
            else shares[part] >= shares[old]
            for label in labels[image]
        )

    def move(image: int, part: int) -> None:
        for label in set(labels[image]):
            counts[label][parts[image]] -= 1
            counts[label][part] += 1
        parts[image] = part

    for label, images in members.items():
        for part in np.flatnonzero(counts[label] == 0) if len(images) >= len(shares) else ():
            image = next((i for i in images if may_move(i, part)), None)
            if image is not None:
                old = parts[image]
                move(image, part)
                others = np.flatnonzero(parts == part)
                back = (i for i in others if i != image and may_move(i, old))
                if (other := next(back, None)) is not None:
                    move(other, old)


@heartbeat("Splitting the dataset")
def split_dataset(
    dataset: dict,
    shares: Sequence[float],
    *,
    count_from_first: bool = False,
    seed: int = 0,
    rare_max: int = RARE_MAX,
    common_max: int = COMMON_MAX,
) -> list[dict]:
    """
    Split an LVIS-format dataset by image files, see :func:`stratify`.

    Images with the same file stay together.

    Args:
        dataset: as returned by :func:`apa_det.data.read_lvis_json`; it is not modified.
        shares: fraction of the images for each part; they sum to 1.
        count_from_first: all parts have the image counts and frequencies of the first, the
            training set. False: each part has its own.
        seed: seed of the split.
        rare_max: largest image count of a rare category, in the parts.
        common_max: the same for a common category.

    Returns:
        Datasets with all other entries of ``dataset``, and all its categories. The counts and
        frequencies of the categories are counted again.

    Raises:
        UserError: a part would have no images.
    """
    file_of = {
        image["id"]: os.path.normpath(relative_file_name(image, allow_outside_root=True))
        for image in dataset["images"]
    }
    classes: dict[str, set[int]] = {file: set() for file in file_of.values()}
    for annotation in dataset["annotations"]:
        classes[file_of[annotation["image_id"]]].add(annotation["category_id"])
    assigned = stratify(list(classes.values()), shares, seed)
    part_of_file = dict(zip(classes, assigned.tolist(), strict=True))
    part_of = {image_id: part_of_file[file] for image_id, file in file_of.items()}
    counted = ("image_count", "instance_count", "frequency")
    parts = []
    for i in range(len(shares)):
        part = {
            **dataset,
            "images": [image for image in dataset["images"] if part_of[image["id"]] == i],
            "annotations": [a for a in dataset["annotations"] if part_of[a["image_id"]] == i],
            "categories": [
                {key: value for key, value in category.items() if key not in counted}
                for category in dataset["categories"]
            ],
        }
        if not part["images"]:
            raise UserError(
                f"The dataset has {len(classes)} images, too few for {len(shares)} parts with the "
                f"shares {', '.join(f'{share:g}' for share in shares)}: a part would have none. "
                "Choose a larger share, or fewer parts."
            )
        if i and count_from_first:
            copy_counts(parts[0], part["categories"], rare_max, common_max)
        complete_categories(part, rare_max, common_max)
        parts.append(part)
    return parts
