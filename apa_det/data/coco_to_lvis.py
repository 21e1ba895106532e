"""COCO-format instance annotations to LVIS format."""

import math
from collections import defaultdict

from pycocotools import mask as mask_utils

from .frequency import COMMON_MAX, RARE_MAX, complete_categories
from .validation import is_polygon

__all__ = ["coco_to_lvis"]


def coco_to_lvis(
    coco: dict,
    *,
    count_from: dict | None = None,
    rare_max: int = RARE_MAX,
    common_max: int = COMMON_MAX,
) -> dict:
    """
    Convert a COCO-format dataset so that LVIS's federated metric means on it what COCO's does.

    LVIS counts a detection of a category as wrong only in pictures where the category has
    instances or is a verified negative. COCO annotates every picture in full, so each category
    without instances in a picture becomes a negative of it: every wrong detection counts.

    LVIS has no crowd regions, so crowd annotations are dropped, and their category becomes "not
    exhaustively annotated" in that picture, and is no negative of it. There a detection that
    matches no instance does not count as wrong, because it may be one of the crowd. (COCO forgives
    only detections inside the crowd region.) The same goes for an unusable annotation, which no
    detection can match: its box or mask is empty, or it has no mask where others have one.

    Polygons of less than three points are left out. An annotation that lacks its area gets that
    of its mask, or of its box.

    Args:
        coco: content of a COCO-format instances file, as :func:`read_coco_json` gives it; it is
            not changed.
        count_from: the training set to take image counts and frequencies from, in COCO or LVIS
            format; ``coco`` itself by default. Convert a validation set with its training set
            here, so that both agree on which categories are rare.
        rare_max: largest image count of a rare category, where no ``frequency`` is given.
        common_max: the same for a common category.

    Returns:
        The dataset in LVIS format: every picture is kept, and all keys but ``iscrowd``. Its
        ``["info"]["coco_to_lvis"]`` counts the "pictures" and "annotations" that are kept, and
        the "crowds" and "unusable" annotations that are dropped.

    Raises:
        ValueError: ``count_from`` lacks a category, or gives its id to another one.
    """
    annotations, dropped = usable_annotations(coco)
    present, uncertain = defaultdict(set), defaultdict(set)
    for annotation in annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    for annotation in dropped:
        uncertain[annotation["image_id"]].add(annotation["category_id"])
    crowds = sum(bool(annotation.get("iscrowd")) for annotation in dropped)
    summary = {
        "pictures": len(coco["images"]),
        "annotations": len(annotations),
        "crowds": crowds,
        "unusable": len(dropped) - crowds,
    }
    info = coco.get("info")

    category_ids = sorted(category["id"] for category in coco["categories"])
    images = [
        image
        | {
            "neg_category_ids": [
                i
                for i in category_ids
                if i not in present[image["id"]] and i not in uncertain[image["id"]]
            ],
            "not_exhaustive_category_ids": sorted(uncertain[image["id"]]),
        }
        for image in coco["images"]
    ]
    converted = {
        **coco,
        "info": (info if isinstance(info, dict) else {}) | {"coco_to_lvis": summary},
        "images": images,
        "annotations": annotations,
        "categories": [dict(category) for category in coco["categories"]],
    }
    if count_from is not None:
        copy_counts(count_from, converted["categories"], rare_max, common_max)
    complete_categories(converted, rare_max, common_max)
    return converted


def usable_annotations(coco: dict) -> tuple[list[dict], list[dict]]:
    """The annotations as LVIS has them, and those to drop."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    single = [annotation for annotation in coco["annotations"] if not annotation.get("iscrowd")]
    has_masks = any(annotation.get("segmentation") for annotation in single)
    usable, dropped = [], []
    for annotation in coco["annotations"]:
        mended = _mended(annotation, sizes[annotation["image_id"]], has_masks)
        if mended is None:
            dropped.append(annotation)
        else:
            usable.append(mended)
    return usable, dropped


def _mended(annotation: dict, size: tuple[int, int], needs_mask: bool) -> dict | None:
    _, _, width, height = annotation["bbox"]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if is_polygon(polygon)]
    if annotation.get("iscrowd") or width <= 0 or height <= 0 or needs_mask and not segmentation:
        return None
    area = annotation.get("area")
    if not isinstance(area, int | float) or not 0 < area < math.inf:
        area = _mask_area(segmentation, size) if segmentation else width * height
    if area <= 0:
        return None
    mended = {key: value for key, value in annotation.items() if key != "iscrowd"}
    return mended | {"segmentation": segmentation or [], "area": area}


def _mask_area(segmentation: list | dict, size: tuple[int, int]) -> int:
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_utils.frPyObjects(segmentation, *size)
    return int(mask_utils.area(segmentation))


def copy_counts(source: dict, categories: list[dict], rare_max: int, common_max: int) -> None:
    """Take ``image_count``, ``instance_count`` and ``frequency`` from the training set."""
    counted = {
        "annotations": usable_annotations(source)[0],
        "categories": [dict(category) for category in source["categories"]],
    }
    complete_categories(counted, rare_max, common_max)
    by_id = {category["id"]: category for category in counted["categories"]}
    for category in categories:
        other = by_id.get(category["id"], {"name": None})
        if other["name"] != category["name"]:
            what = f'"{other["name"]}"' if category["id"] in by_id else "missing"
            raise ValueError(
                f'Category {category["id"]} is "{category["name"]}", but {what} in the file to '
                "take the counts from: both must have the same categories"
            )
        for key in ("image_count", "instance_count", "frequency"):
            category[key] = other[key]
