"""Open Images: CSV files of classes, boxes and verified image-level labels."""

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TextIO

from ...errors import MissingFileError, UserError
from ...text import printable
from .source import Source, box_in_image, find_images, image_records, numbered

logger = logging.getLogger(__name__)

_CLASSES = "*class-descriptions-boxable.csv", "*class-descriptions*.csv"
_BOXES = ("ImageID", "LabelName", "IsGroupOf", "XMin", "YMin", "XMax", "YMax")
_LABELS = ("ImageID", "LabelName", "Source", "Confidence")
_SIDES = ("width", "height", "width", "height")


def read_open_images(
    folder: str | os.PathLike, image_root: str | os.PathLike | None = None
) -> Source:
    """
    Read Open Images: boxes, and image-level labels that people have verified.

    The folder has the files under their published names: ``*class-descriptions-boxable.csv``,
    ``*SPLIT-annotations-bbox.csv`` and ``*SPLIT-annotations-human-imagelabels*.csv``, where SPLIT
    is train, validation (the split "val") or test. Splits without a file of boxes are left out. The
    images are ``IMAGE_ROOT/SPLIT/IMAGE_ID.jpg``; the rows of other images, such as those not
    downloaded, are skipped.

    Only classes that people have verified count in an image:

    - a label of confidence 0 is a negative: all detections of the class are false positives;
    - a label of confidence 1 without boxes makes the class not exhaustively annotated;
    - boxes with ``IsGroupOf`` become crowds: the conversion to LVIS format drops them and marks
      their class as not exhaustively annotated in the image;
    - labels with another confidence, or of the source "machine", and labels of classes that
      are not in the class file are skipped.

    Classes are not expanded by the hierarchy. The category ids are the positions in the class file,
    from 1.

    Args:
        folder: of the CSV files.
        image_root: of the images. None: the same folder.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: a file is invalid; the message names the file and the line.
    """
    folder, image_root = Path(folder), Path(image_root or folder)
    class_file = _find(folder, *_CLASSES)
    if class_file is None:
        raise MissingFileError(f"{folder} has no {_CLASSES[0]}: download it to this folder.")
    categories = _read_classes(class_file)
    splits = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        boxes = _find(folder, f"*{split}-annotations-bbox.csv")
        labels = _find(folder, f"*{split}-annotations-human-imagelabels*.csv")
        if boxes is None:
            continue
        if labels is None:
            raise MissingFileError(
                f"{folder} has {boxes.name}, but no *{split}-annotations-human-imagelabels*.csv, "
                "which tells what is verified as absent: download it to this folder."
            )
        splits[name] = _read_split(boxes, labels, image_root / split, image_root, categories)
    if not splits:
        raise MissingFileError(
            f"{folder} has no *-annotations-bbox.csv: download those of the splits to this folder."
        )
    return Source(splits, os.path.abspath(image_root))


def _find(folder: Path, *patterns: str) -> Path | None:
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{folder} has several files {pattern}: {', '.join(p.name for p in found)}. Keep "
                "one."
            )
        if found:
            return found[0]
    return None


def _read_classes(path: Path) -> dict[str, dict]:
    """Return the categories by label, e.g. "/m/01g317"."""
    categories, names = {}, set()
    with _open_csv(path) as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if row and row != ["LabelName", "DisplayName"]:
                if len(row) != 2 or row[0] in categories:
                    raise UserError(
                        f"{path} line {number} must be a new label and its name, got "
                        f"{printable(row)}."
                    )
                label, name = row
                name = f"{name} ({label})" if name in names else name
                names.add(name)
                categories[label] = {"id": len(categories) + 1, "name": name}
    if not categories:
        raise UserError(f"{path} has no classes. Download it again.")
    return categories


def _read_split(
    box_file: Path, label_file: Path, folder: Path, root: Path, categories: dict[str, dict]
) -> dict:
    if not folder.is_dir():
        raise MissingFileError(f"{folder}, the folder of the images, does not exist.")
    paths = {path.stem: path for path in find_images(folder)}
    boxes, absent, present = defaultdict(list), defaultdict(set), defaultdict(set)
    skipped = set()
    for number, (name, label, group, *corners) in _rows(box_file, _BOXES):
        if name not in paths:
            skipped.add(name)
        elif label not in categories:
            raise UserError(
                f"{box_file} line {number} has the class {printable(label)}, which is not in the "
                "class file: use the class file of the same release."
            )
        else:
            corners = tuple(_number(x, box_file, number) for x in corners)
            boxes[name].append((categories[label]["id"], int(group == "1"), corners))
    for number, (name, label, source, confidence) in _rows(label_file, _LABELS):
        if name not in paths:
            skipped.add(name)
        elif label in categories and source != "machine":
            value = _number(confidence, label_file, number)
            if value in (0, 1):
                (present if value else absent)[name].add(categories[label]["id"])
    if skipped:
        logger.warning(
            "Skipped the rows of %s images of %s and %s that are not in %s.",
            *(f"{len(skipped):,}", box_file.name, label_file.name, folder),
        )
    names = sorted(boxes.keys() | absent.keys() | present.keys())
    if not names:
        raise UserError(
            f"{folder} has none of the images of {box_file.name}: the image of the id abc must be "
            "abc.jpg."
        )
    images = image_records([paths[name] for name in names], str(root))
    annotations = []
    for name, image in zip(names, images, strict=True):
        with_boxes = {category_id for category_id, *_ in boxes[name]}
        image["neg_category_ids"] = sorted(absent[name])
        image["not_exhaustive_category_ids"] = sorted(present[name] - with_boxes)
        for category_id, is_group, corners in boxes.pop(name):
            corners = [x * image[side] for x, side in zip(corners, _SIDES, strict=True)]
            annotation = {"category_id": category_id, "bbox": box_in_image(*corners, image)}
            annotations.append({"image_id": image["id"], "iscrowd": is_group, **annotation})
    return {
        "images": images,
        "annotations": numbered(annotations),
        "categories": list(categories.values()),
    }


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the line number of each row, and its values of the columns."""
    with _open_csv(path) as file:
        reader = csv.reader(file)
        header = next(reader, [])
        missing = [name for name in columns if name not in header]
        if missing:
            raise UserError(
                f"{path} must have the column {missing[0]} in its first line. Download it again."
            )
        values = itemgetter(*map(header.index, columns))
        for row in reader:
            if len(row) >= len(header):
                yield reader.line_num, values(row)
            elif row:
                raise UserError(f"{path} line {reader.line_num} is cut off. Download it again.")


@contextmanager
def _open_csv(path: Path) -> Iterator[TextIO]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield file
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file: {error}. Download it again.") from error


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(
            f"{path} line {line} must have numbers from 0 to 1, got '{printable(text)}'."
        )
    return value
