"""File names of images, relative to the image root of their dataset."""

import os

from ..errors import UserError
from ..text import printable


def relative_name(image: dict) -> str:
    """Return the file name of an LVIS image record: ``file_name``, or the end of ``coco_url``."""
    name = image.get("file_name")
    return "/".join(image["coco_url"].split("/")[-2:]) if name is None else name


def leaves_root(name: str) -> bool:
    """Return whether a relative file name leads out of the image root."""
    normal = os.path.normpath(name)
    return os.path.isabs(name) or normal == os.pardir or normal.startswith(os.pardir + os.sep)


def relative_file_name(image: dict, *, allow_outside_root: bool = False) -> str:
    """Return the file name of an LVIS image record, relative to the image root.

    Raises:
        UserError: the file is outside the image root, and ``allow_outside_root`` is False.
    """
    name = relative_name(image)
    if leaves_root(name) and not allow_outside_root:
        raise UserError(
            f"Image {image['id']} has the file_name '{printable(name)}', which must be inside the "
            "image root: make it relative to the root, or, if you trust the dataset, set "
            "DATASETS.ALLOW_OUTSIDE_ROOT to True (dataloader.allow_outside_root in a LazyConfig)."
        )
    return name
