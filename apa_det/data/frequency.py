"""The frequency groups of LVIS: rare, common and frequent categories, by image count."""

import logging
from collections import Counter

__all__ = ["COMMON_MAX", "RARE_MAX", "complete_categories", "frequency_group"]

RARE_MAX = 10
COMMON_MAX = 100

logger = logging.getLogger(__name__)


def frequency_group(
    image_count: int, rare_max: int = RARE_MAX, common_max: int = COMMON_MAX
) -> str:
    """
    The frequency group of a category, by the number of training pictures that hold it.

    Args:
        image_count: number of training pictures with at least one instance.
        rare_max: largest image count of a rare category (LVIS: 10).
        common_max: largest image count of a common category (LVIS: 100).

    Returns:
        "r" for rare, "c" for common, "f" for frequent.

    Raises:
        ValueError: ``rare_max`` is negative, or above ``common_max``.
    """
    check_thresholds(rare_max, common_max)
    return "r" if image_count <= rare_max else "c" if image_count <= common_max else "f"


def check_thresholds(rare_max: int, common_max: int) -> None:
    """Raise a ValueError unless ``0 <= rare_max <= common_max``."""
    if not 0 <= rare_max <= common_max:
        raise ValueError(
            f"rare_max must be at least 0 and at most common_max, not {rare_max} with "
            f"common_max {common_max}"
        )


def complete_categories(
    dataset: dict, rare_max: int = RARE_MAX, common_max: int = COMMON_MAX
) -> None:
    """
    Give each category the ``image_count``, ``instance_count`` and ``frequency`` that it lacks.

    Counts are those of the annotations. A frequency is derived from the image count, so the
    thresholds do not touch a frequency that the file gives.

    Args:
        dataset: content of an LVIS-format file; its categories are changed in place.
        rare_max: largest image count of a rare category.
        common_max: largest image count of a common category.
    """
    check_thresholds(rare_max, common_max)
    categories = dataset["categories"]
    if any("image_count" not in c or "instance_count" not in c for c in categories):
        pairs = [(a["category_id"], a["image_id"]) for a in dataset["annotations"]]
        instances = Counter(category_id for category_id, _ in pairs)
        images = Counter(category_id for category_id, _ in set(pairs))
        for category in categories:
            category.setdefault("image_count", images[category["id"]])
            category.setdefault("instance_count", instances[category["id"]])
    lacking = [category for category in categories if "frequency" not in category]
    for category in lacking:
        category["frequency"] = frequency_group(category["image_count"], rare_max, common_max)
    if lacking:
        logger.info(
            "Derived the frequency group of %d of %d categories from their image counts: up to %d "
            "rare, up to %d common, else frequent.",
            len(lacking),
            len(categories),
            rare_max,
            common_max,
        )
