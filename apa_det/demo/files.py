"""The pictures that go in, and where the drawn ones come out."""

import glob
import os
from collections.abc import Sequence

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

__all__ = [
    "PICTURES",
    "find_pictures",
    "output_paths",
    "read_picture",
    "write_picture",
]

PICTURES = (".png", ".bmp", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")


def find_pictures(inputs: Sequence[str]) -> list[str]:
    """The paths of pictures that are named one by one, by their folder or by a glob pattern.

    Args:
        inputs: the names. Of a folder, the pictures directly in it are taken, by their extension.

    Returns:
        The paths, each once, in the order of the names; those of a folder or pattern are sorted.

    Raises:
        FileNotFoundError: a name stands for no picture.
    """
    paths = []
    for name in inputs:
        if os.path.isfile(name):
            found = [name]
        elif os.path.isdir(name):
            found = sorted(e.path for e in os.scandir(name) if e.is_file() and _is_picture(e.name))
            if not found:
                raise FileNotFoundError(
                    f"There is no picture in the folder {name} ({', '.join(PICTURES)}). Folders in "
                    f'it are not searched: for them give "{os.path.join(name, "*", "*.jpg")}".'
                )
        else:
            found = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            if not found:
                raise FileNotFoundError(f"There is no picture, folder or pattern {name}.")
        paths += found
    return list(dict.fromkeys(paths))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def read_picture(path: str) -> np.ndarray:
    """A picture as (H, W, 3) uint8, RGB, turned as its EXIF data say.

    Raises:
        ValueError: the file is no picture, or is broken.
    """
    try:
        return read_image(path, "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def output_paths(
    inputs: Sequence[str], output: str, extensions: Sequence[str] = PICTURES
) -> tuple[list[str], str]:
    """Where what is drawn goes, and the JSON file of the detections.

    Args:
        inputs: the pictures, or one video.
        output: a folder, in which the files are named as the inputs are, with the folders in which
            those differ, and the JSON is ``detections.json``. Of a single input it may be a file,
            by its extension; the JSON is beside it, with the extension ``.json``.
        extensions: of the files that can be written. An input of another kind gets the first.

    Raises:
        ValueError: an input would be written over, or several would go into one file.
    """
    if output.lower().endswith(tuple(extensions)) and not os.path.isdir(output):
        if len(inputs) > 1:
            raise ValueError(
                f"{len(inputs)} pictures do not go into the one file {output}: name a folder."
            )
        paths, json_file = [output], f"{os.path.splitext(output)[0]}.json"
    else:
        full = [os.path.abspath(path) for path in inputs]
        root = os.path.commonpath([os.path.dirname(path) for path in full])
        paths = [os.path.join(output, os.path.relpath(path, root)) for path in full]
        paths = [p if p.lower().endswith(tuple(extensions)) else p + extensions[0] for p in paths]
        json_file = os.path.join(output, "detections.json")
    lost = {os.path.realpath(path) for path in inputs} & {os.path.realpath(path) for path in paths}
    if lost:
        raise ValueError(f"{min(lost)} would be written over: name another output.")
    return paths, json_file


def write_picture(image: np.ndarray, path: str) -> None:
    """Write (H, W, 3) uint8, RGB, into a folder that is made where it is missing."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
