"""The frequency groups of LVIS: rare, common and frequent categories, by image count."""

RARE_MAX = 10
COMMON_MAX = 100


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
    """
    return "r" if image_count <= rare_max else "c" if image_count <= common_max else "f"
