"""A subset of images for evaluation during training."""

import numpy as np

from .ground_truth import GroundTruth


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
