"""Reading LVIS and COCO JSON files, with one clear error for a file that cannot be used."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..utils.json_files import read_json

__all__ = [
    "Problem",
    "is_coco_format",
    "read_coco_json",
    "read_coco_or_lvis_json",
    "read_lvis_json",
    "structure_problems",
]

_TABLES = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a dataset."""

    kind: str  # the same for all problems of a sort
    message: str  # the record, what is wrong with it, and the mend
    record: tuple[str, int] | None = None  # its table and place there


def read_lvis_json(json_file: str | os.PathLike) -> dict:
    """
    Read an LVIS-format file and make sure that it can be trained on and evaluated.

    Args:
        json_file: path of the file.

    Returns:
        The file's content: a dict with "images", "annotations" and "categories".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or a record lacks what training or evaluation needs.
            The message names the record and the mend.
    """
    return _read_dataset(json_file, coco=False)


def read_coco_json(json_file: str | os.PathLike) -> dict:
    """
    As :func:`read_lvis_json`, for a COCO-format instances file.

    Crowds, annotations without area or mask, polygons of less than three points, and pictures
    without negative categories are fine: :func:`coco_to_lvis` takes care of them.
    """
    return _read_dataset(json_file, coco=True)


def read_coco_or_lvis_json(json_file: str | os.PathLike) -> dict:
    """As :func:`read_lvis_json`, or as :func:`read_coco_json` if :func:`is_coco_format`."""
    return _read_dataset(json_file, coco=None)


def is_coco_format(dataset: dict) -> bool:
    """Whether no picture has the ``neg_category_ids`` of LVIS."""
    images = _records(dataset, "images")
    return bool(images) and not any("neg_category_ids" in image for image in images)


def _read_dataset(json_file: str | os.PathLike, coco: bool | None) -> dict:
    dataset = read_json(json_file)
    if coco is None:
        coco = is_coco_format(dataset)
    problem = next(structure_problems(dataset, coco=coco), None)
    if problem is not None:
        more = "" if coco else " tools/prepare_dataset.py check lists all that is wrong with it."
        raise ValueError(f"{json_file}: {problem.message}.{more}")
    return dataset


def structure_problems(dataset, *, coco: bool = False) -> Iterator[Problem]:
    """
    All that makes a dataset unusable, the first problem of each record.

    Args:
        dataset: content of an LVIS JSON file.
        coco: take it as COCO's, see :func:`read_coco_json`.
    """
    if not isinstance(dataset, dict):
        what = f"the file holds a JSON {type(dataset).__name__}, not an object with images"
        yield Problem("not a dataset", f"{what}, annotations and categories")
        return
    for table in _TABLES:
        if not isinstance(dataset.get(table), list):
            what = "is not a list" if table in dataset else "is missing"
            yield Problem(
                f'no "{table}"',
                f'the key "{table}" {what}: the file needs the lists images, annotations and '
                "categories",
            )
    if not dataset.get("categories", True):
        yield Problem("no category", 'the list "categories" is empty: name the classes there')
    images, categories = index_by_id(dataset, "images"), index_by_id(dataset, "categories")
    names: set[str] = set()
    has_masks = any(a.get("segmentation") for a in _records(dataset, "annotations"))
    checks = {
        "categories": lambda record: category_problem(record, names),
        "images": lambda record: image_problem(record, coco),
        "annotations": lambda record: annotation_problem(
            record, images, categories, has_masks=has_masks, coco=coco
        ),
    }
    for table, check in checks.items():
        noun = "category" if table == "categories" else table[:-1]
        seen: set[int] = set()
        records = dataset.get(table)
        for index, record in enumerate(records if isinstance(records, list) else ()):
            found = None
            if type(record) is not dict:
                found = (f"{noun} that is no object", "is not a JSON object: remove it")
            elif type(id_ := record.get("id")) is not int:
                what = "is not a whole number" if "id" in record else "is missing"
                found = (f"{noun} without id", f"has no usable id: it {what}; number the records")
            elif id_ in seen:
                found = (f"{noun} id used twice", "has the id of another one: number them anew")
            else:
                seen.add(id_)
                found = check(record)
            if found:
                kind, message = found
                message = f"{describe(noun, record, index)} {message}"
                yield Problem(kind, message, (table, index))


def index_by_id(dataset: dict, table: str) -> dict[int, dict]:
    """The records of a table that are objects with a whole number as id, by that id."""
    return {r["id"]: r for r in _records(dataset, table) if type(r.get("id")) is int}


def _records(dataset: dict, table: str) -> list[dict]:
    records = dataset.get(table) if isinstance(dataset, dict) else None
    return [r for r in records if type(r) is dict] if isinstance(records, list) else []


def describe(noun: str, record, index: int) -> str:
    """Name a record by its id, or by its place in the file where it has none."""
    id_ = record.get("id") if isinstance(record, dict) else None
    return f"{noun} number {index + 1} in the file" if id_ is None else f"{noun} {id_}"


# Each check returns what is wrong first with a record, as (kind, what and mend), or None.


def category_problem(category: dict, names: set[str]) -> tuple[str, str] | None:
    name = category.get("name")
    if not isinstance(name, str) or not name:
        return "category without name", "has no name: give it one"
    if name in names:
        return "category name used twice", f'has the name of another one, "{name}": rename it'
    names.add(name)
    if category.get("frequency", "r") not in ("r", "c", "f"):
        return (
            "unknown frequency",
            f"has the frequency {category['frequency']!r}: use r, c or f, or leave it out to have "
            "it derived from image_count",
        )
    for key in ("image_count", "instance_count"):
        if type(category.get(key, 0)) is not int or category.get(key, 0) < 0:
            return (
                "impossible count",
                f"has the {key} {category[key]!r}: use a whole number, or leave it out to have it "
                "counted",
            )
    return None


def image_problem(image: dict, coco: bool) -> tuple[str, str] | None:
    for key in ("height", "width"):
        if type(image.get(key)) is not int or image[key] <= 0:
            what = f"has the {key} {image[key]!r}" if key in image else f"has no {key}"
            return f"image without {key}", f"{what}: give it as a whole number of pixels"
    if not isinstance(image.get("file_name", image.get("coco_url")), str):
        return "image without file_name", "has neither file_name nor coco_url: name its picture"
    if not coco:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not isinstance(image.get(key), list):
                return (
                    f"image without {key}",
                    f"has no {key}, which the LVIS metric needs: if the file is COCO's, convert "
                    "it with tools/prepare_dataset.py coco-to-lvis",
                )
    return None


def annotation_problem(
    annotation: dict,
    images: dict[int, dict],
    categories: dict[int, dict],
    *,
    has_masks: bool,
    coco: bool,
) -> tuple[str, str] | None:
    for key, known, noun in (
        ("image_id", images, "image"),
        ("category_id", categories, "category"),
    ):
        if key not in annotation:
            return (
                f"annotation without {key}",
                f"has no {key}: give it the id of its {noun}, or remove it",
            )
        id_ = annotation[key]
        if type(id_) is not int or id_ not in known:
            return (
                f"annotation of an unknown {noun}",
                f"has the {key} {id_!r}, which no {noun} in the file has: add that {noun}, or "
                "remove the annotation",
            )
    if not is_box(annotation.get("bbox")):
        what = f"the bbox {annotation['bbox']!r}" if "bbox" in annotation else "no bbox"
        return "annotation without bbox", f"has {what}: it needs [x, y, width, height] in pixels"
    segmentation = annotation.get("segmentation")
    if segmentation:
        image = images[annotation["image_id"]]
        fault = segmentation_fault(segmentation, image.get("height"), image.get("width"), coco)
        if fault:
            return "broken segmentation", f"has a segmentation {fault}"
    if coco:
        return None
    if has_masks and not segmentation:
        return (
            "annotation without segmentation",
            "has no segmentation where others have one: add it, or remove the segmentation of all",
        )
    area = annotation.get("area")
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        what = f"the area {area!r}" if "area" in annotation else "no area"
        return "annotation without area", f"has {what}: give the mask's area in pixels"
    if annotation.get("iscrowd"):
        return (
            "crowd annotation",
            "is a crowd (iscrowd), which LVIS does not have: convert the file with "
            "tools/prepare_dataset.py coco-to-lvis",
        )
    return None


def is_box(box) -> bool:
    """Whether this is [x, y, width, height], all finite numbers."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return False
    try:
        return -math.inf < box[0] + box[1] + box[2] + box[3] < math.inf
    except TypeError:
        return False


def segmentation_fault(segmentation, height: int, width: int, coco: bool) -> str | None:
    """What is wrong with polygons or RLE, and the mend; None if nothing is."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return (
                f"(RLE) of the size {segmentation.get('size')}, not [{height}, {width}] as its "
                "image: make the mask anew"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, str) and counts:
            return None
        if isinstance(counts, list) and _adds_up_to(counts, height * width):
            return None
        return "(RLE) whose counts do not cover its image: make the mask anew"
    if not isinstance(segmentation, list):
        return "that is neither a list of polygons nor RLE: make it one of them"
    for polygon in segmentation:
        if not isinstance(polygon, list) or not (coco or is_polygon(polygon)):
            return "with a polygon that is not [x0, y0, x1, y1, x2, y2, ...]: remove the polygon"
    return None


def is_polygon(corners: list) -> bool:
    """Whether a list is as long as [x0, y0, x1, y1, x2, y2, ...]."""
    return len(corners) >= 6 and len(corners) % 2 == 0


def _adds_up_to(counts: list, total: int) -> bool:
    try:
        return sum(counts) == total
    except TypeError:
        return False
