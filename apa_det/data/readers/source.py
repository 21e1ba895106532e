"""What all readers return, and its conversion to LVIS format."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ...errors import MissingFileError, UserError
from ...utils.progress import track
from ..coco_to_lvis import coco_to_lvis
from ..frequency import COMMON_MAX, RARE_MAX
from ..image_files import exif_orientation
from ..validation import structure_problems

IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Source(NamedTuple):
    """A dataset in another format.

    Attributes:
        splits: content in COCO format, by split: "train", "val" or "test". The same categories in
            all. Images that have ``neg_category_ids`` and ``not_exhaustive_category_ids`` are not
            annotated exhaustively: only the categories in ``neg_category_ids`` are verified as
            absent.
        image_root: folder that file names are relative to.
    """

    splits: dict[str, dict]
    image_root: str

    def to_lvis(
        self,
        *,
        count_from: dict | None = None,
        rare_max: int = RARE_MAX,
        common_max: int = COMMON_MAX,
    ) -> dict[str, dict]:
        """Convert all splits to LVIS format, see :func:`apa_det.data.coco_to_lvis`.

        Args:
            count_from: training set that provides image counts and frequencies. None: the split
                "train", if there is one.
            rare_max: largest image count of a rare category.
            common_max: the same for a common category.

        Raises:
            UserError: a record is not valid in LVIS format, e.g. the name of a class.
        """
        for name, split in self.splits.items():
            for problem in structure_problems(split, coco=True):
                raise UserError(f"The split {name}: {problem.message}.")
        train = self.splits.get("train")
        return {
            name: coco_to_lvis(
                split,
                count_from=count_from or (train if name != "train" else None),
                rare_max=rare_max,
                common_max=common_max,
            )
            for name, split in self.splits.items()
        }


def require_file(path: Path, what: str) -> Path:
    """Return the path of a file, or raise a MissingFileError that says what it is."""
    if not path.is_file():
        raise MissingFileError(f"{path}, {what}, does not exist. Check the path.")
    return path


def read_text(path: Path, what: str) -> str:
    """Return the content of a text file.

    Raises:
        MissingFileError, UserError: it does not exist, or is not a text file.
    """
    try:
        return require_file(path, what).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, {what}, is not a text file in UTF-8: write it again.") from error
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")
    )


def image_records(paths: Sequence[Path], image_root: str) -> list[dict]:
    """Return the :func:`image_record` of each path, with ids from 1."""
    tracked = track(paths, "Reading the sizes of the images", "images")
    return [image_record(i, path, image_root) for i, path in enumerate(tracked, start=1)]


def image_record(image_id: int, path: Path, image_root: str) -> dict:
    """Return the COCO record of an image file; the size is that after its EXIF rotation.

    Raises:
        MissingFileError: the file does not exist.
        UserError: it is not a readable image.
    """
    require_file(path, "an image")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if exif_orientation(image) >= 5:  # rotated by 90 degrees
                width, height = height, width
    # Pillow's errors for corrupt files
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"Cannot read the image {path}: {error}. Replace or remove it, with its annotations."
        ) from error
    name = Path(os.path.relpath(path, image_root)).as_posix()
    return {"id": image_id, "file_name": name, "height": height, "width": width}


def box_in_image(left: float, top: float, right: float, bottom: float, image: dict) -> list[float]:
    """Return the part of a box, in pixels, inside its image as ``[x, y, width, height]``."""
    left, right = (min(max(x, 0), image["width"]) for x in (left, right))
    top, bottom = (min(max(y, 0), image["height"]) for y in (top, bottom))
    return [round(x, 2) for x in (left, top, right - left, bottom - top)]


def numbered(annotations: Iterable[dict]) -> list[dict]:
    """Return annotations with ids from 1."""
    return [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)]
