"""Pascal VOC datasets: one XML file of boxes per image."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import MissingFileError, MissingPackageError, UserError
from ...text import printable
from .source import IMAGE_EXTENSIONS, Source, box_in_image, image_record, numbered, read_text


def read_pascal_voc(folder: str | os.PathLike, categories: Sequence[dict] | None = None) -> Source:
    """
    Read a Pascal VOC dataset of boxes.

    The folder has ``Annotations/*.xml`` and ``JPEGImages/``. The splits are ``train``, ``val`` and
    ``test`` of ``ImageSets/Main/*.txt``. Without such lists, all images are "train".

    As in detectron2, coordinates are 1-based and include the last pixel: a box from ``xmin`` to
    ``xmax`` becomes [xmin − 1, xmax). Boxes are clipped to their image. Objects marked
    ``difficult``, which VOC's metric ignores, become crowds: the conversion to LVIS format drops
    them and marks their category as not exhaustively annotated in that image. ``occluded`` and
    ``truncated`` objects are normal instances; the annotations keep these two marks.

    Args:
        folder: such as ``VOCdevkit/VOC2012``.
        categories: dicts with ``id`` and ``name``, those of the training set. None: the names in
            the files, sorted, with ids from 1.

    Raises:
        MissingFileError: a file or folder is missing.
        MissingPackageError: defusedxml is not installed.
        UserError: a file is invalid, or has an unknown category; the message names it.
    """
    folder = Path(folder)
    names = _names_by_split(folder)
    files = {name: _read_xml(folder, name) for split in names.values() for name in split}
    if categories is None:
        found = {item["name"] for _, objects in files.values() for item in objects}
        categories = [{"id": i, "name": name} for i, name in enumerate(sorted(found), start=1)]
        if not categories:
            raise UserError(f"{folder / 'Annotations'} has no objects: there is nothing to learn.")
    ids = {category["name"]: category["id"] for category in categories}
    splits = {}
    for split, members in names.items():
        annotations = []
        for image_id, name in enumerate(members, start=1):
            for item in files[name][1]:
                if item["name"] not in ids:
                    raise UserError(
                        f"{folder / 'Annotations' / name}.xml has the category "
                        f"'{printable(item['name'])}', which must be one of those of the training "
                        f"set: {printable(', '.join(ids), 500)}."
                    )
                category = {"image_id": image_id, "category_id": ids[item["name"]]}
                annotations.append(category | item["annotation"])
        splits[split] = {
            "images": [{**files[m][0], "id": i} for i, m in enumerate(members, start=1)],
            "annotations": numbered(annotations),
            "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        }
    return Source(splits, os.path.abspath(folder))


def _names_by_split(folder: Path) -> dict[str, list[str]]:
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        raise MissingFileError(
            f"{annotations} does not exist: name the folder that contains Annotations and "
            "JPEGImages, such as VOCdevkit/VOC2012."
        )
    names = {}
    for split in ("train", "val", "test"):
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        if path.is_file():
            lines = read_text(path, "a list of images").splitlines()
            names[split] = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    names = names or {"train": sorted(path.stem for path in annotations.glob("*.xml"))}
    for split, members in names.items():
        if not members:
            raise UserError(f"{folder} has no images in its split {split}: add some.")
    return names


def _read_xml(folder: Path, name: str) -> tuple[dict, list[dict]]:
    """Return the image record without id, and each object's ``name`` and ``annotation``."""
    path = folder / "Annotations" / f"{name}.xml"
    root = _parse(path)
    image = _image_record(root, folder, name)
    objects = []
    for number, item in enumerate(root.findall("object"), start=1):
        who = f"{path} object {number}"
        label = (item.findtext("name") or "").strip()
        if not label:
            raise UserError(f"{who} has no name: add one.")
        xmin, ymin, xmax, ymax = (
            _number(item, f"bndbox/{key}", who) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        annotation = {"bbox": box_in_image(xmin - 1, ymin - 1, xmax, ymax, image)}
        for key in ("occluded", "truncated"):
            if _is_set(item, key):
                annotation[key] = 1
        annotation["iscrowd"] = int(_is_set(item, "difficult"))
        objects.append({"name": label, "annotation": annotation})
    return image, objects


def _parse(path: Path):
    try:
        from defusedxml import DefusedXmlException, ElementTree
    except ImportError as error:
        raise MissingPackageError(
            "Pascal VOC files need the package defusedxml: pip install defusedxml."
        ) from error
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise MissingFileError(
            f"{path}, the annotations of an image, does not exist. Add it, or remove the image "
            "from the lists in ImageSets/Main."
        ) from None
    except DefusedXmlException as error:
        raise UserError(
            f"{path} declares entities, which no annotation needs. It was not read: remove them."
        ) from error
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(f"{path} is not valid XML: {error}. Write it again.") from error


def _image_record(root, folder: Path, name: str) -> dict:
    """Take the size from the XML, else from the image; the file must exist."""
    images = folder / "JPEGImages"
    named = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    extensions = [e for lower in (".jpg", *IMAGE_EXTENSIONS) for e in (lower, lower.upper())]
    candidates = [images / f"{name}{extension}" for extension in extensions] + [images / named]
    path = next((path for path in candidates if path.is_file()), candidates[0])
    record = image_record(0, path, str(folder))
    try:
        size = [int(root.findtext(f"size/{key}") or 0) for key in ("width", "height")]
    except ValueError:
        size = [0, 0]
    if min(size) > 0 and size != [record["width"], record["height"]]:
        raise UserError(
            f"{folder / 'Annotations' / name}.xml says that {path} has the size "
            f"{size[0]} x {size[1]}, but it has {record['width']} x {record['height']}, with its "
            "EXIF rotation if any. Correct the size and the boxes."
        )
    return record


def _number(item, key: str, who: str) -> float:
    text = item.findtext(key)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not abs(value) < 1e9:
        raise UserError(f"{who} must have a number in {key}, got '{printable(text)}'.")
    return value


def _is_set(item, key: str) -> bool:
    return (item.findtext(key) or "").strip() in ("1", "true", "True")
