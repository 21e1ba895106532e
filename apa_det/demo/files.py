"""Find and read the input images, name the output files, and write the drawn images."""

import glob
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..errors import MissingFileError, UserError
from ..text import file_name, printable

IMAGE_EXTENSIONS = (".png", ".bmp", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")


def find_images(inputs: Sequence[str]) -> list[str]:
    """Return the paths of the images that files, folders and glob patterns name.

    Args:
        inputs: the names. A folder stands for the files directly in it with one of
            :data:`IMAGE_EXTENSIONS`.

    Returns:
        The paths without duplicates, in the order of ``inputs``; those of a folder or pattern are
        sorted.

    Raises:
        MissingFileError: a name matches no image.
    """
    paths = []
    for name in inputs:
        if os.path.isfile(name):
            matches = [name]
        elif os.path.isdir(name):
            matches = sorted(e.path for e in os.scandir(name) if e.is_file() and _is_image(e.name))
            if not matches:
                pattern = os.path.join(name, "*", "*.jpg")
                raise MissingFileError(
                    f"There is no image in the folder {name} ({', '.join(IMAGE_EXTENSIONS)}). Its "
                    f'subfolders are not searched: for them give a pattern, e.g. "{pattern}".'
                )
        else:
            matches = sorted(p for p in glob.glob(name, recursive=True) if os.path.isfile(p))
            if not matches:
                raise MissingFileError(f"There is no image, folder or pattern {name}.")
        paths += matches
    return list(dict.fromkeys(paths))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def output_paths(
    inputs: Sequence[str], output: str, extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> tuple[list[str], str]:
    """Return the path of each drawn image or video, and of the JSON file of the detections.

    Args:
        inputs: the images, or one video.
        output: a folder: the drawn files keep the names of the inputs and their subfolders below
            the common one, and the JSON file is ``detections.json``. For a single input it may
            also be a file with one of the extensions: the JSON file is then beside it, with the
            extension ``.json``.
        extensions: file types that can be written. The first one is appended to the names of other
            inputs.

    Raises:
        UserError: an input would be overwritten, or several inputs have one output file.
    """
    if output.lower().endswith(tuple(extensions)) and not os.path.isdir(output):
        if len(inputs) > 1:
            raise UserError(
                f"Cannot write {len(inputs)} images into the file {output}: give a folder."
            )
        paths, json_file = [output], f"{os.path.splitext(output)[0]}.json"
    else:
        full = [os.path.abspath(path) for path in inputs]
        root = os.path.commonpath([os.path.dirname(path) for path in full])
        names = [os.path.relpath(path, root) for path in full]
        names = [n if n.lower().endswith(tuple(extensions)) else n + extensions[0] for n in names]
        paths = [os.path.join(output, *map(file_name, name.split(os.sep))) for name in names]
        json_file = os.path.join(output, "detections.json")
        written: dict[str, str] = {}
        for path, source in zip(paths, full, strict=True):
            if written.setdefault(path, source) != source:
                raise UserError(
                    f"{printable(written[path], 300)} and {printable(source, 300)} would both be "
                    f"written to {path}: rename one of them, or run on them one by one."
                )
    lost = {os.path.realpath(path) for path in inputs} & {os.path.realpath(path) for path in paths}
    if lost:
        raise UserError(f"{min(lost)} would be overwritten: give another output.")
    return paths, json_file


def write_image(image: np.ndarray, path: str) -> None:
    """Write (H, W, 3) uint8, RGB; missing folders are created."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
