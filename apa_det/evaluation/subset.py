"""A few pictures to evaluate on while a model trains."""

import numpy as np

from .ground_truth import GroundTruth

__all__ = ["choose_subset"]


def choose_subset(truth: GroundTruth, num_pictures: int, seed: int = 0) -> np.ndarray:
    """Choose pictures so that every frequency group has a like share of them.

    The groups take turns. Each takes a picture, drawn at random, of that category of its own that
    the fewest chosen pictures show as yet, and of such the one with the fewest pictures left. So
    rare categories stay in. Where no group has a picture left, the others are drawn at random.

    Args:
        truth: the ground truth.
        num_pictures: how many; all if there are no more.
        seed: of the draws. The same arguments give the same pictures.

    Returns:
        Picture ids, ascending.
    """
    total = len(truth.image_ids)
    if num_pictures >= total:
        return truth.image_ids
    order = np.random.default_rng(seed).permutation(total)
    shows = _pictures_by_category(truth, order)
    groups = [
        [k for k in np.flatnonzero(truth.category_groups == g).tolist() if shows[k]]
        for g in range(len(truth.groups.names))
    ]
    categories_of = [[] for _ in range(total)]
    for category, pictures in enumerate(shows):
        for picture in pictures:
            categories_of[picture].append(category)
    left = [len(pictures) for pictures in shows]
    shown = [0] * len(shows)
    chosen: dict[int, None] = {}
    while len(chosen) < num_pictures and any(groups):
        for group in groups:
            group[:] = [k for k in group if left[k]]
            if not group or len(chosen) == num_pictures:
                continue
            category = min(group, key=lambda k: (shown[k], left[k]))
            picture = next(p for p in shows[category] if p not in chosen)
            chosen[picture] = None
            for k in categories_of[picture]:
                shown[k] += 1
                left[k] -= 1
    others = [p for p in order.tolist() if p not in chosen]
    pictures = [*chosen, *others[: num_pictures - len(chosen)]]
    return truth.image_ids[np.sort(pictures)]


def _pictures_by_category(truth: GroundTruth, order: np.ndarray) -> list[list[int]]:
    """The pictures, in the given order, in which there is something of each category to find."""
    num_categories = len(truth.category_ids)
    pairs = np.unique(
        truth.annotation_categories[truth.counted] * len(order)
        + np.argsort(order)[truth.annotation_images[truth.counted]]
    )
    categories, ranks = np.divmod(pairs, len(order))
    ends = np.searchsorted(categories, np.arange(1, num_categories))
    return [pictures.tolist() for pictures in np.split(order[ranks], ends)]
