"""Reading and validating LVIS and COCO JSON files."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UserError
from ..utils.json_files import read_json

_TABLES = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset."""

    kind: str
    message: str  # the record, the problem, and how to fix it
    record: tuple[str, int] | None = None  # table and index


def read_lvis_json(json_file: str | os.PathLike) -> dict:
    """
    Read an LVIS-format file and check that it can be used for training and evaluation.

    Args:
        json_file: path of the file.

    Returns:
        Content of the file: a dict with "images", "annotations" and "categories".

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not JSON, or a record is invalid; the message names the record and
            how to fix it.
    """
    return _read_dataset(json_file, coco=False)


def read_coco_json(json_file: str | os.PathLike) -> dict:
    """
    Read a COCO-format instances file, with the checks of :func:`read_lvis_json`.

    Crowds, annotations without area or mask, polygons with fewer than three points, and images
    without negative categories are valid: :func:`coco_to_lvis` handles them.
    """
    return _read_dataset(json_file, coco=True)


def read_coco_or_lvis_json(json_file: str | os.PathLike) -> dict:
    """Call :func:`read_coco_json` if :func:`is_coco_format`, else :func:`read_lvis_json`."""
    return _read_dataset(json_file, coco=None)


def is_coco_format(dataset: dict) -> bool:
    """Return True if the dataset has images, and none has LVIS's ``neg_category_ids``."""
    images = _records(dataset, "images")
    return bool(images) and not any("neg_category_ids" in image for image in images)


def _read_dataset(json_file: str | os.PathLike, coco: bool | None) -> dict:
    dataset = read_json(json_file)
    if coco is None:
        coco = is_coco_format(dataset)
    problem = next(structure_problems(dataset, coco=coco), None)
    if problem is not None:
        more = "" if coco else " tools/prepare_dataset.py check lists all problems."
        raise UserError(f"{json_file}: {problem.message}.{more}")
    return dataset


def structure_problems(dataset, *, coco: bool = False) -> Iterator[Problem]:
    """
    Yield the problems that make a dataset unusable: the first one of each record.

    Args:
        dataset: content of an LVIS JSON file.
        coco: True for COCO format; see :func:`read_coco_json`.
    """
    if not isinstance(dataset, dict):
        yield Problem(
            "not a dataset",
            f"the file contains a JSON {type(dataset).__name__}; expected an object with images, "
            "annotations and categories",
        )
        return
    for table in _TABLES:
        if not isinstance(dataset.get(table), list):
            what = "is not a list" if table in dataset else "is missing"
            yield Problem(
                f'missing list "{table}"',
                f'the key "{table}" {what}: the file needs the lists images, annotations and '
                "categories",
            )
    if not dataset.get("categories", True):
        yield Problem("no categories", 'the list "categories" is empty: add the classes')
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
            problem = None
            if type(record) is not dict:
                problem = (f"{noun} is not an object", "is not a JSON object: remove it")
            elif type(id_ := record.get("id")) is not int:
                what = f"the id {id_!r}" if "id" in record else "no id"
                problem = (f"{noun} without valid id", f"has {what}; expected an integer")
            elif id_ in seen:
                problem = (f"duplicate {noun} id", "has a duplicate id: use unique ids")
            else:
                seen.add(id_)
                problem = check(record)
            if problem:
                kind, message = problem
                message = f"{describe(noun, record, index)} {message}"
                yield Problem(kind, message, (table, index))


def index_by_id(dataset: dict, table: str) -> dict[int, dict]:
    """Return the valid records of a table by id: the objects whose id is an integer."""
    return {r["id"]: r for r in _records(dataset, table) if type(r.get("id")) is int}


def _records(dataset: dict, table: str) -> list[dict]:
    records = dataset.get(table) if isinstance(dataset, dict) else None
    return [r for r in records if type(r) is dict] if isinstance(records, list) else []


def describe(noun: str, record, index: int) -> str:
    """Return a name of a record: by its id, or else by its position in the file."""
    id_ = record.get("id") if isinstance(record, dict) else None
    return f"{noun} number {index + 1} in the file" if id_ is None else f"{noun} {id_}"


# Each check returns the first problem of a record as (kind, message), or None.


def category_problem(category: dict, names: set[str]) -> tuple[str, str] | None:
    name = category.get("name")
    if not isinstance(name, str) or not name:
        return "category without name", "has no name: add one"
    if name in names:
        message = f'has the same name as another category, "{name}": rename one of them'
        return "duplicate category name", message
    names.add(name)
    if category.get("frequency", "r") not in ("r", "c", "f"):
        return (
            "invalid frequency",
            f"has the frequency {category['frequency']!r}; expected r, c or f. Remove it to derive "
            "it from image_count",
        )
    for key in ("image_count", "instance_count"):
        if type(category.get(key, 0)) is not int or category.get(key, 0) < 0:
            return (
                "invalid count",
                f"has the {key} {category[key]!r}; expected an integer >= 0. Remove it to count "
                "the annotations",
            )
    return None


def image_problem(image: dict, coco: bool) -> tuple[str, str] | None:
    for key in ("height", "width"):
        if type(image.get(key)) is not int or image[key] <= 0:
            what = f"has the {key} {image[key]!r}" if key in image else f"has no {key}"
            return f"image without valid {key}", f"{what}; expected an integer > 0 (pixels)"
    if not isinstance(image.get("file_name", image.get("coco_url")), str):
        return "image without file_name", "has neither file_name nor coco_url: add file_name"
    if not coco:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not isinstance(image.get(key), list):
                return (
                    f"image without {key}",
                    f"has no {key}, which the LVIS metric needs: convert files in COCO format with "
                    "tools/prepare_dataset.py coco-to-lvis",
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
                f"has no {key}: add the id of its {noun}, or remove the annotation",
            )
        id_ = annotation[key]
        if type(id_) is not int or id_ not in known:
            return (
                f"annotation with unknown {noun}",
                f"has the {key} {id_!r}, but the file has no such {noun}: add the {noun}, or "
                "remove the annotation",
            )
    if not is_box(annotation.get("bbox")):
        what = f"the bbox {annotation['bbox']!r}" if "bbox" in annotation else "no bbox"
        return "annotation without valid bbox", f"has {what}; expected [x, y, width, height]"
    segmentation = annotation.get("segmentation")
    if segmentation:
        image = images[annotation["image_id"]]
        fault = segmentation_fault(segmentation, image.get("height"), image.get("width"), coco)
        if fault:
            return "invalid segmentation", f"has a segmentation {fault}"
    if coco:
        return None
    if has_masks and not segmentation:
        return (
            "annotation without segmentation",
            "has no segmentation, but other annotations do: add it, or remove all segmentations",
        )
    area = annotation.get("area")
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        what = f"the area {area!r}" if "area" in annotation else "no area"
        return "annotation without valid area", f"has {what}; expected the mask area in pixels"
    if annotation.get("iscrowd"):
        return (
            "crowd annotation",
            "is a crowd (iscrowd), which LVIS does not support: convert the file with "
            "tools/prepare_dataset.py coco-to-lvis",
        )
    return None


def is_box(box) -> bool:
    """Return True for [x, y, width, height] of finite numbers."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return False
    try:
        return -math.inf < box[0] + box[1] + box[2] + box[3] < math.inf
    except TypeError:
        return False


def segmentation_fault(segmentation, height: int, width: int, coco: bool) -> str | None:
    """Return the problem of polygons or RLE and how to fix it, or None if they are valid."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            return (
                f"(RLE) of the size {segmentation.get('size')}, but its image is [{height}, "
                f"{width}]: recreate the mask"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, str) and counts:
            return None
        if isinstance(counts, list) and _adds_up_to(counts, height * width):
            return None
        return "(RLE) whose counts do not cover its image: recreate the mask"
    if not isinstance(segmentation, list):
        return "that is neither a list of polygons nor RLE: convert it"
    for polygon in segmentation:
        if not isinstance(polygon, list) or not (coco or is_polygon(polygon)):
            return "with a polygon that is not [x0, y0, x1, y1, x2, y2, ...]: remove the polygon"
    return None


def is_polygon(corners: list) -> bool:
    """Return True for an even number of at least 6 coordinates [x0, y0, x1, y1, x2, y2, ...]."""
    return len(corners) >= 6 and len(corners) % 2 == 0


def _adds_up_to(counts: list, total: int) -> bool:
    try:
        return sum(counts) == total
    except TypeError:
        return False
