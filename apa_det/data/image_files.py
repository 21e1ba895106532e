"""Check of image files: each one is decoded, as in training."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ..text import printable

_EXIF_ORIENTATION = 0x0112
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


class ImageFile(NamedTuple):
    """An image file of a dataset."""

    path: str
    size: tuple[int, int] | None  # the annotated width and height


class ImageCheck(NamedTuple):
    """Result for one file: its problems as pairs of kind and text."""

    problems: list[tuple[str, str]]
    rotated: bool  # EXIF data flip or rotate the image


def check_image_files(files: Iterable[ImageFile]) -> Iterator[ImageCheck]:
    """Decode image files on all CPUs, and yield the result of each, in order."""
    files = list(files)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without the GIL
        yield from tqdm(pool.map(_check, files), "images", len(files), delay=2, unit="image")


def _check(file: ImageFile) -> ImageCheck:
    path = printable(file.path, 500)
    try:
        if not PathManager.isfile(file.path):
            return ImageCheck([("missing image file", f"{path} does not exist")], False)
        with PathManager.open(file.path, "rb") as stream, Image.open(stream) as image:
            stored, mode, orientation = image.size, image.mode, _orientation(image)
            image.load()
    except UnidentifiedImageError:
        return ImageCheck([("unreadable image file", f"{path} is not an image")], False)
    except Exception as error:  # damaged data can raise anything
        text = printable(error, 200)
        return ImageCheck([("unreadable image file", f"{path}: {text}")], False)
    problems = []
    if mode not in _EIGHT_BIT_MODES:
        text = f"{path} has the pixel format {mode}, more than 8 bits: convert it to 8 bits"
        problems.append(("image with more than 8 bits", text))
    size = stored[::-1] if orientation >= 5 else stored
    if file.size is not None and size != file.size:
        text = f"{path} is {size[0]} x {size[1]}, but annotated as {file.size[0]} x {file.size[1]}"
        if stored == file.size:
            text += ": its EXIF data rotate it, so rotate the annotations or remove the EXIF data"
        problems.append(("wrong image size", text))
    return ImageCheck(problems, orientation != 1)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data are ignored in training
        return 1
