"""YOLO datasets: a ``data.yaml``, and a text file of normalized boxes or polygons per image."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ...errors import MissingFileError, UserError
from ...text import printable
from ...utils.yaml_files import read_yaml
from .source import Source, box_in_image, find_images, image_records, numbered, read_text

_TOLERANCE = 0.01  # by which coordinates may leave the image, as in YOLO's own loader


def read_yolo(data_yaml: str | os.PathLike) -> Source:
    """
    Read a YOLO dataset of boxes or polygons.

    ``data.yaml`` has ``names`` (a list, or ``{index: name}``) and for ``train``, ``val`` and
    ``test`` a folder of images, a ``.txt`` list of image files, or a list of these. They are
    relative to ``path``, which is relative to the folder of ``data.yaml`` and by default that
    folder. The labels of ``images/a.jpg`` are in ``labels/a.txt``, with one object per line: the
    class index and ``cx cy width height`` or ``x1 y1 x2 y2 ...``, as fractions of the image size.
    An image without such a file has no objects. Repeated lines count once. ``test`` is left out if
    none of its images has labels.

    The category ids are the class indices plus 1. All images are annotated exhaustively.

    Raises:
        MissingFileError: a file or folder is missing.
        UserError: a file is invalid; the message names the file and the line.
    """
    data_yaml = Path(data_yaml)
    config = _read_config(data_yaml)
    names = _class_names(config, data_yaml)
    root = data_yaml.parent / (config.get("path") or "")
    if not root.is_dir():
        root = data_yaml.parent
    files = {
        split: _image_files(config[split], root, f"{data_yaml}: {split}")
        for split in ("train", "val", "test")
        if config.get(split)
    }
    if not files:
        raise UserError(f"{data_yaml} has neither train nor val: add the folder of the images.")
    every = [os.path.abspath(path) for paths in files.values() for path in paths]
    root = os.path.abspath(root)
    if os.path.commonpath([root, *every]) != root:
        root = os.path.commonpath([os.path.dirname(path) for path in every])
    splits = {}
    for split, paths in files.items():
        if any(_label_file(path).is_file() for path in paths):
            splits[split] = _read_split(paths, root, names)
        elif split != "test":
            raise MissingFileError(
                f"{data_yaml}: no image of {split} has labels: {_label_file(paths[0])} and the "
                "others do not exist. The labels of images/a.jpg must be in labels/a.txt."
            )
    return Source(splits, root)


def _read_config(data_yaml: Path) -> dict:
    config = read_yaml(data_yaml)
    for key in ("path", "train", "val", "test"):
        value = config.get(key) or ""
        lists = key != "path" and isinstance(value, list)
        if not all(isinstance(entry, str) for entry in (value if lists else [value])):
            raise UserError(f"{data_yaml}: {key} must be a path{' or a list' * (key != 'path')}.")
    return config


def _class_names(config: dict, data_yaml: Path) -> dict[int, str]:
    names = config.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not (names and isinstance(names, dict)) or not all(
        type(i) is int and i >= 0 and type(name) in (str, int, float) for i, name in names.items()
    ):
        raise UserError(
            f"{data_yaml}: names must be a list of class names, or {{index: name}} with indices "
            "from 0. Quote names such as yes, no, on and off."
        )
    names = {i: str(name) for i, name in sorted(names.items())}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise UserError(f"{data_yaml}: names must be unique, got '{printable(repeated[0])}' twice.")
    if config.get("nc", len(names)) != len(names):
        raise UserError(f"{data_yaml}: nc must be the number of names, {len(names)}.")
    return names


def _image_files(entries: str | list, root: Path, key: str) -> list[Path]:
    paths = []
    for entry in entries if isinstance(entries, list) else [entries]:
        path = root / entry
        if not path.exists() and entry.startswith("../"):  # as Roboflow writes it
            path = root / entry[3:]
        if path.is_dir():
            paths += find_images(path)
        elif path.suffix == ".txt" and path.is_file():
            lines = map(str.strip, read_text(path, "a list of images").splitlines())
            paths += (_listed(line, path.parent, root) for line in lines if line)
        else:
            raise MissingFileError(
                f"{key}: {path} is neither a folder of images nor a .txt list of them. Correct it, "
                "or path, in the file."
            )
    if not paths:
        raise UserError(f"{key} has no images: check the folder.")
    return list(dict.fromkeys(paths))


def _listed(line: str, folder: Path, root: Path) -> Path:
    beside = folder / line
    return beside if beside.is_file() else root / line


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_split(paths: list[Path], root: str, names: dict[int, str]) -> dict:
    images = image_records(paths, root)
    annotations = (
        annotation
        for path, image in zip(paths, images, strict=True)
        for annotation in _annotations(_label_file(path), image, names)
    )
    return {
        "images": images,
        "annotations": numbered(annotations),
        "categories": [{"id": i + 1, "name": name} for i, name in names.items()],
    }


def _annotations(path: Path, image: dict, names: dict[int, str]) -> Iterator[dict]:
    if not path.is_file():
        return
    seen = set()
    for number, line in enumerate(read_text(path, "the labels of an image").splitlines(), start=1):
        if not line.strip() or line in seen:
            continue
        seen.add(line)
        try:
            index, *values = map(float, line.split())
        except ValueError:
            raise UserError(
                f"{path} line {number} must be numbers, got '{printable(line)}'."
            ) from None
        if index not in names:
            raise UserError(
                f"{path} line {number} has the class {index:g}, which is not in names "
                f"(0 to {max(names)}). Correct the line, or names in the dataset's yaml."
            )
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise UserError(
                f"{path} line {number} must be a class and cx cy width height, or a class and at "
                f"least 3 points x y; got {len(values) + 1} numbers."
            )
        if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):  # also NaN
            worst = next(v for v in values if not -_TOLERANCE <= v <= 1 + _TOLERANCE)
            raise UserError(
                f"{path} line {number} has the coordinate {worst:g}, which must be from 0 to 1: "
                "divide x by the image's width and y by its height."
            )
        yield {"image_id": image["id"], "category_id": int(index) + 1, **_shape(values, image)}


def _shape(values: list[float], image: dict) -> dict:
    width, height = image["width"], image["height"]
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        left, top, right, bottom = (
            c * s for c, s in zip(corners, (width, height) * 2, strict=True)
        )
        return {"bbox": box_in_image(left, top, right, bottom, image)}
    xs = [round(min(max(x, 0), 1) * width, 2) for x in values[::2]]
    ys = [round(min(max(y, 0), 1) * height, 2) for y in values[1::2]]
    polygon = [c for point in zip(xs, ys, strict=True) for c in point]
    box = box_in_image(min(xs), min(ys), max(xs), max(ys), image)
    return {"bbox": box, "segmentation": [polygon]}
