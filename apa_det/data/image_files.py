"""Image files: reading them, and checking that those of a dataset can be read."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ..errors import MissingFileError, UserError
from ..text import printable
from ..utils.progress import track

_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: str | os.PathLike, format: str | None = None) -> np.ndarray:
    """Read an image as detectron2's ``read_image`` does, but gray values of 16 bits as 8 bits.

    16 bits are divided by 257 and rounded. Of color images with 16 bits per channel, Pillow reads
    the high byte. The EXIF orientation is applied.

    Args:
        path: the image file.
        format: a mode of Pillow, "BGR" or "YUV-BT.601". None: that of the file.

    Returns:
        (H, W, C) uint8, or (H, W) for the formats of one channel that detectron2 squeezes; float64
        for "YUV-BT.601".

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not an image, is broken, or has values outside of 0 to 65535.
    """
    return _read(path, format).pixels


class _Decoded(NamedTuple):
    pixels: np.ndarray
    mode: str  # of the file
    orientation: int  # 1 to 8, as in EXIF data
    size: tuple[int, int]  # width and height, before the EXIF orientation is applied


def _read(path: str | os.PathLike, format: str | None) -> _Decoded:
    name = printable(os.fspath(path), 500)
    try:
        with PathManager.open(os.fspath(path), "rb") as stream, Image.open(stream) as image:
            mode, size, orientation = image.mode, image.size, exif_orientation(image)
            if orientation != 1:
                image = _apply_exif_orientation(image)
            pixels = convert_PIL_to_numpy(_with_eight_bits(image), format)
        return _Decoded(pixels, mode, orientation, size)
    except FileNotFoundError as error:
        raise MissingFileError(f"There is no image {name}.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"Cannot read the image {name}: it is not an image.") from error
    except Exception as error:  # damaged data can raise anything
        text = printable(error, 200).rstrip(".") or type(error).__name__
        raise UserError(f"Cannot read the image {name}: {text}.") from error


def _with_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats; convert them to 8 or 16 bits")
    if image.mode not in _SIXTEEN_BIT_MODES:
        return image
    values = np.asarray(image).astype(np.int32)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"its values must be from 0 to 65535, got {low} to {high}; convert it to 8 or 16 bits"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, from 1 to 8; 1 if it is missing or invalid."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data are ignored
        return 1
    return orientation if orientation in range(1, 9) else 1


class ImageFile(NamedTuple):
    """An image file of a dataset."""

    path: str
    size: tuple[int, int] | None  # the annotated width and height


class ImageCheck(NamedTuple):
    """Result for one file."""

    problems: list[tuple[str, str]]  # pairs of kind and text
    rotated: bool = False  # EXIF data flip or rotate the image
    sixteen_bits: bool = False  # it is divided by 257


def check_image_files(files: Iterable[ImageFile]) -> Iterator[ImageCheck]:
    """Read image files on all CPUs, as in training, and yield the result of each, in order."""
    files = list(files)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without the GIL
        yield from track(pool.map(_check, files), "Checking image files", "images", len(files))


def _check(file: ImageFile) -> ImageCheck:
    try:
        image = _read(file.path, "RGB")
    except MissingFileError as error:
        return ImageCheck([("missing image file", _clause(error))])
    except UserError as error:
        return ImageCheck([("unreadable image file", _clause(error))])
    problems = []
    height, width = image.pixels.shape[:2]
    if file.size is not None and (width, height) != file.size:
        text = size_mismatch(file.path, (width, height), file.size)
        if image.size == file.size:
            text += ": its EXIF data rotate it, so rotate the annotations or remove the EXIF data"
        problems.append(("wrong image size", text))
    return ImageCheck(problems, image.orientation != 1, image.mode in _SIXTEEN_BIT_MODES)


def size_mismatch(path: str, size: tuple[int, int], annotated: tuple[int, int]) -> str:
    """Return the message about an image of another size than annotated (width, height)."""
    return (
        f"{printable(path, 500)} is {size[0]} x {size[1]}, but annotated as "
        f"{annotated[0]} x {annotated[1]}"
    )


def _clause(error: UserError) -> str:
    text = str(error).rstrip(".")
    return text[0].lower() + text[1:]
