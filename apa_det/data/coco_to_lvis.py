"""Conversion of COCO-format instance annotations to LVIS format."""

from collections import defaultdict

from pycocotools import mask as mask_utils

from ..errors import UserError
from ..text import listed, shown
from ..utils.progress import heartbeat
from .faults import Fault
from .frequency import COMMON_MAX, RARE_MAX, complete_categories
from .records import MAX_NUMBER, to_rle


@heartbeat("Converting the annotations")
def coco_to_lvis(
    coco: dict,
    *,
    count_from: dict | None = None,
    rare_max: int = RARE_MAX,
    common_max: int = COMMON_MAX,
) -> dict:
    """
    Convert a COCO-format dataset to LVIS format, keeping the meaning of the metric.

    LVIS counts unmatched detections of a category as false positives only in images where the
    category has instances or is a verified negative. COCO annotates every image exhaustively, so
    each category without instances in an image becomes a negative of that image: all false
    positives count. Images that have ``neg_category_ids`` are not annotated exhaustively: only
    these are their negatives, and their ``not_exhaustive_category_ids`` are kept.

    LVIS has no crowd regions. Crowd annotations are dropped, and their category is marked as not
    exhaustively annotated in that image instead of negative. There, an unmatched detection is
    ignored, as it may belong to the crowd. (COCO ignores only detections inside the crowd region.)
    Unusable annotations are handled alike: those with an empty box or mask, or without a mask in a
    dataset with masks.

    Polygons with fewer than three points are removed. A missing area is computed from the mask,
    else from the box.

    Args:
        coco: content of a COCO-format instances file, see :func:`read_coco_json`. It is not
            modified.
        count_from: training set, in COCO or LVIS format, that provides image counts and
            frequencies. None: ``coco`` itself. Pass it for a validation set, so that both sets
            have the same rare categories.
        rare_max: largest image count of a rare category; unused if ``frequency`` is given.
        common_max: the same for a common category.

    Returns:
        The dataset in LVIS format, with all images and all keys except ``iscrowd``.
        ``["info"]["coco_to_lvis"]`` holds the number of "images" and "annotations" kept and of
        "crowds" and "unusable" annotations dropped.

    Raises:
        UserError: ``count_from`` lacks a category of this name.
    """
    annotations, dropped = usable_annotations(coco)
    present, uncertain = defaultdict(set), defaultdict(set)
    for annotation in annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    for annotation in dropped:
        uncertain[annotation["image_id"]].add(annotation["category_id"])
    for image in coco["images"]:
        uncertain[image["id"]].update(image.get("not_exhaustive_category_ids", ()))
    crowds = sum(bool(annotation.get("iscrowd")) for annotation in dropped)
    summary = {
        "images": len(coco["images"]),
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
                for i in image.get("neg_category_ids", category_ids)
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


def crowd_note(num_crowds: int) -> str:
    """Return how the crowd regions of a COCO-format dataset are evaluated."""
    return (
        f"{num_crowds:,} crowd region{'s' * (num_crowds != 1)} of COCO: by LVIS's rules, unmatched "
        "detections of the category are ignored in the whole image, so pycocotools gives another "
        "AP."
    )


def usable_annotations(coco: dict) -> tuple[list[dict], list[dict]]:
    """Return the annotations converted to LVIS format, and the dropped ones."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    single = [annotation for annotation in coco["annotations"] if not annotation.get("iscrowd")]
    has_masks = any(annotation.get("segmentation") for annotation in single)
    usable, dropped = [], []
    for annotation in coco["annotations"]:
        fixed = _fix(annotation, sizes[annotation["image_id"]], has_masks)
        if fixed is None:
            dropped.append(annotation)
        else:
            usable.append(fixed)
    return usable, dropped


def _fix(annotation: dict, size: tuple[int, int], needs_mask: bool) -> dict | None:
    _, _, width, height = annotation["bbox"]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        segmentation = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
    if annotation.get("iscrowd") or width <= 0 or height <= 0 or needs_mask and not segmentation:
        return None
    area = annotation.get("area")
    if type(area) not in (int, float) or not 0 < area <= MAX_NUMBER:
        area = width * height
        if segmentation:
            try:
                area = int(mask_utils.area(to_rle(segmentation, *size)))
            except Fault as fault:
                raise UserError(f"annotation {shown(annotation.get('id'))}: {fault}.") from fault
    if area <= 0:
        return None
    fixed = {key: value for key, value in annotation.items() if key != "iscrowd"}
    return fixed | {"segmentation": segmentation or [], "area": area}


def copy_counts(source: dict, categories: list[dict], rare_max: int, common_max: int) -> None:
    """Copy ``image_count``, ``instance_count`` and ``frequency`` from the training set."""
    counted = {
        "annotations": usable_annotations(source)[0],
        "categories": [dict(category) for category in source["categories"]],
    }
    complete_categories(counted, rare_max, common_max)
    by_name = {category["name"]: category for category in counted["categories"]}
    missing = [category["name"] for category in categories if category["name"] not in by_name]
    if missing:
        raise UserError(
            f"The training set that provides the counts lacks the categories {listed(missing)}. "
            "Categories go by name: use the same names in both files."
        )
    for category in categories:
        for key in ("image_count", "instance_count", "frequency"):
            category[key] = by_name[category["name"]][key]
