"""Reading and validating LVIS and COCO JSON files."""

import codecs
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice

import numpy as np

from ..errors import UserError
from ..text import has_control, shown
from ..utils.json_files import gc_paused, local_path, read_json
from . import records
from .faults import Fault, column, faults

ID_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
TABLES = ("images", "annotations", "categories")
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[\s*[^\s\]]')
CONVERT = "convert files in COCO format with tools/prepare_dataset.py coco-to-lvis"


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset."""

    kind: str
    message: str  # the record, the problem, and how to fix it
    record: tuple[str, int] | None = None  # table and index


def read_lvis_json(json_file: str | os.PathLike) -> dict:
    """
    Read an LVIS-format file and check that it can be used for training and evaluation.

    A test set without ground truth has no annotations, and need not have the key "annotations", nor
    ``neg_category_ids`` and ``not_exhaustive_category_ids`` of its images.

    Args:
        json_file: path of the file, which may be a gzip or zip archive.

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


def read_categories(json_file: str | os.PathLike) -> list[dict]:
    """
    Read only the categories of an LVIS-format or COCO-format file, by ascending id.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not JSON, or a category is invalid.
    """
    path = local_path(json_file)
    status = os.stat(path)
    return [*_read_categories(os.fspath(json_file), path, status.st_mtime_ns, status.st_size)]


@lru_cache(maxsize=16)
def _read_categories(json_file: str, path: str, mtime_ns: int, size: int) -> list[dict]:
    """Args: mtime_ns, size: a file that was written again is read again."""
    dataset = _find_categories(path, size) or read_json(json_file)
    if isinstance(dataset, dict):
        dataset = {**dataset, "images": [], "annotations": []}
    _raise_first(json_file, dataset, coco=True)
    return sorted(dataset["categories"], key=lambda category: category["id"])


def _find_categories(path: str, size: int) -> dict | None:
    """Return the key ``categories`` and its list; None if the key is not unique, or in an archive.

    The file is searched, not parsed: it may be large. Within strings, quotes are escaped, so a
    match is a key.
    """
    if not size:
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        starts = [match.end() for match in islice(_CATEGORIES.finditer(data), 2)]
        for length in (2**20, 2**24, size) if len(starts) == 1 else ():
            part = data[starts[0] : starts[0] + length]
            with suppress(ValueError, RecursionError):  # cut off: try a longer part
                text = codecs.getincrementaldecoder("utf-8")().decode(part)
                return {"categories": json.JSONDecoder().raw_decode(text)[0]}
    return None


def has_annotations(json_file: str | os.PathLike) -> bool:
    """Return False for a file without annotations: a test set without ground truth.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is an archive, and not of JSON.
    """
    path = local_path(json_file)
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:1] in (b"{", b" ", b"\n"):  # neither an archive nor another encoding
                return _ANNOTATIONS.search(data) is not None
    return bool(table_of(read_json(json_file), "annotations"))


def is_coco_format(dataset: dict) -> bool:
    """Return True if the dataset has images, and none has LVIS's ``neg_category_ids``."""
    images = [image for image in table_of(dataset, "images") if type(image) is dict]
    return bool(images) and not any("neg_category_ids" in image for image in images)


@gc_paused()
def _read_dataset(json_file: str | os.PathLike, coco: bool | None) -> dict:
    dataset = read_json(json_file)
    if isinstance(dataset, dict) and dataset.setdefault("annotations", []) == []:
        coco = True  # a test set: its images need no verified categories
    if coco is None:
        coco = is_coco_format(dataset)
    _raise_first(json_file, dataset, coco=coco)
    return dataset


def _raise_first(json_file: str | os.PathLike, dataset, *, coco: bool) -> None:
    problem = next(structure_problems(dataset, coco=coco), None)
    if problem is not None:
        more = "" if coco else " tools/prepare_dataset.py check lists all problems."
        raise UserError(f"{json_file}: {problem.message}.{more}")


def structure_problems(dataset, *, coco: bool = False) -> Iterator[Problem]:
    """
    Yield the problems that make a dataset unusable.

    Args:
        dataset: content of an LVIS JSON file.
        coco: True for COCO format; see :func:`read_coco_json`.
    """
    if not isinstance(dataset, dict):
        yield Problem(
            "not a dataset",
            f"the file must be an object with images, annotations and categories, got a JSON "
            f"{type(dataset).__name__}",
        )
        return
    for table in TABLES:
        if not isinstance(dataset.get(table), list):
            what = "is not a list" if table in dataset else "is missing"
            yield Problem(
                f'missing list "{table}"',
                f'the key "{table}" {what}: the file needs the lists images, annotations and '
                "categories",
            )
    if not dataset.get("categories", True):
        yield Problem("no categories", 'the list "categories" is empty: add the classes')
    lists = [partial(_id_lists, key, coco) for key in ID_LISTS]
    counts = [partial(_counts, key) for key in ("image_count", "instance_count")]
    for table, checks in (
        ("categories", [_names, _frequencies, *counts]),
        ("images", [records.image_sizes, _file_names, *lists]),
        ("annotations", _annotation_checks(dataset, coco)),
    ):
        yield from _table_problems(table, table_of(dataset, table), checks)


def _table_problems(
    table: str, values: list, checks: Sequence[Callable[[list[dict]], object]]
) -> Iterator[Problem]:
    noun = "category" if table == "categories" else table[:-1]
    indices = [i for i, value in enumerate(values) if type(value) is dict]
    items = [values[i] for i in indices]
    for i in [i for i, value in enumerate(values) if type(value) is not dict]:
        message = f"{describe(noun, None, i)} must be a JSON object, got {shown(values[i])}"
        yield Problem(f"{noun} that is not an object", f"{message}; remove it", (table, i))
    for key in ("id", "name") if table == "categories" else ("id",):
        for i, value in _repeated(items, key):
            message = f"{key} must be unique, got {shown(value)} again; change it"
            message = f"{describe(noun, items[i], indices[i])}: {message}"
            yield Problem(f"duplicate {noun} {key}", message, (table, indices[i]))
    for i, fault in faults(items, [_ids, *checks]):
        message = f"{describe(noun, items[i], indices[i])}: {fault}"
        yield Problem(f"{noun} without valid {fault.key}", message, (table, indices[i]))


def _repeated(items: list[dict], key: str) -> Iterator[tuple[int, object]]:
    values = [item.get(key) for item in items]
    try:
        if len(set(values)) == len(values):
            return
    except TypeError:  # a list or a dict
        pass
    seen = set()
    for i, value in enumerate(values):
        if type(value) in (int, str):
            if value in seen:
                yield i, value
            seen.add(value)


def index_by_id(dataset: dict, table: str) -> dict[int, dict]:
    """Return the records of a table by id: the objects whose id is an integer."""
    return {
        r["id"]: r for r in table_of(dataset, table) if type(r) is dict and type(r.get("id")) is int
    }


def table_of(dataset, table: str) -> list:
    """Return a list of a dataset, or an empty one if it is invalid."""
    values = dataset.get(table) if isinstance(dataset, dict) else None
    return values if isinstance(values, list) else []


def describe(noun: str, record, index: int) -> str:
    """Return a name of a record: by its id, or else by its position in the file."""
    id_ = record.get("id") if isinstance(record, dict) else None
    if type(id_) is int and abs(id_) <= records.MAX_ID:
        return f"{noun} {id_}"
    return f"{noun} number {index + 1} in the file"


# Checks of records, see apa_det.data.records.


def check_images(images: list[dict]) -> None:
    """Raise a Fault for images in LVIS format with an invalid value; ids may be repeated."""
    for check in (_ids, records.image_sizes, _file_names):
        check(images)
    for key in ID_LISTS:
        _id_lists(key, False, images)


def check_annotations(annotations: list[dict]) -> None:
    """Raise a Fault for annotations in LVIS format with an invalid id, area or iscrowd."""
    for check in (_ids, _areas, _no_crowds):
        check(annotations)


def _ids(items: list[dict]) -> np.ndarray:
    return records.integers(column(items, "id", "add a unique integer"), "id")


def _names(categories: list[dict]) -> None:
    for name in column(categories, "name", "add it"):
        if type(name) is not str:
            raise Fault("name", f"must be text, got {shown(name)}")
        if has_control(name):
            raise Fault("name", f"must have no control characters, got {shown(name)}")


def _frequencies(categories: list[dict]) -> None:
    for category in categories:
        if category.get("frequency", "r") not in ("r", "c", "f"):
            got = shown(category["frequency"])
            raise Fault(
                "frequency",
                f"must be r, c or f, got {got}; remove it to derive it from image_count",
            )


def _counts(key: str, categories: list[dict]) -> None:
    must = f"be an integer from 0 to {records.MAX_NUMBER:,}; remove it to count the annotations"
    records.integers(
        [c[key] for c in categories if key in c], key, must, low=0, high=records.MAX_NUMBER
    )


def _file_names(images: list[dict]) -> None:
    for image in images:
        key = "coco_url" if image.get("file_name") is None and "coco_url" in image else "file_name"
        if type(image.get(key)) is not str:
            raise Fault(
                key, f"must be text, got {shown(image.get(key))}; add the path of the image"
            )


def has_file_name(image) -> bool:
    """Return True if a record is an object that names an image file."""
    return type(image) is dict and not [*faults([image], [_file_names])]


def _id_lists(key: str, optional: bool, images: list[dict]) -> None:
    if optional:
        images = [image for image in images if key in image]
    records.id_lists(column(images, key, f"the LVIS metric needs it: {CONVERT}"), key)


def _annotation_checks(dataset: dict, coco: bool) -> list[Callable[[list[dict]], object]]:
    images = index_by_id(dataset, "images")
    rows = list(images.values())
    broken = {i for i, _ in faults(rows, [records.image_sizes])}
    sizes = {r["id"]: (r["height"], r["width"]) for i, r in enumerate(rows) if i not in broken}
    categories = index_by_id(dataset, "categories")
    has_masks = any(
        a.get("segmentation") for a in table_of(dataset, "annotations") if type(a) is dict
    )

    def segmentations(annotations: list[dict]) -> None:
        masked = [a for a in annotations if a.get("segmentation")]
        if has_masks and not coco and len(masked) < len(annotations):
            problem = "is missing, but other annotations have one; add it, or remove all of them"
            raise Fault("segmentation", problem)
        masked = [a for a in masked if type(a.get("image_id")) is int and a["image_id"] in sizes]
        if masked:
            records.segmentations(
                [a["segmentation"] for a in masked],
                np.array([sizes[a["image_id"]] for a in masked]),
                short_polygons=coco,
            )

    common = [
        partial(_references, "image_id", images.keys()),
        partial(_references, "category_id", categories.keys()),
        _boxes,
        segmentations,
    ]
    return common if coco else [*common, _areas, _no_crowds]


def _references(key: str, known: Set[int], annotations: list[dict]) -> None:
    noun = key.removesuffix("_id")
    values = column(annotations, key, f"add the id of its {noun}, or remove the annotation")
    must = f"be the id of one of the file's {'images' if noun == 'image' else 'categories'}"
    records.integers(values, key, must)
    if not known >= set(values):
        remedy = f"add the {noun}, or remove the annotation"
        raise Fault(key, f"must {must}, got {shown(values[0])}; {remedy}")


def _boxes(annotations: list[dict]) -> np.ndarray:
    return records.boxes(column(annotations, "bbox", "add [x, y, width, height]"))


def _areas(annotations: list[dict]) -> None:
    values = column(annotations, "area", "add the mask area in pixels")
    records.numbers(values, "area", "be the mask area in pixels, a finite number >= 0", low=0)


def _no_crowds(annotations: list[dict]) -> None:
    for annotation in annotations:
        if annotation.get("iscrowd"):
            got = shown(annotation["iscrowd"])
            raise Fault("iscrowd", f"must be 0 in LVIS format, got {got}; {CONVERT}")
