"""Checkpoints that detectron2's own checkpointer cannot read, in a form that it can."""

import hashlib
import logging
import os

import torch
from iopath.common.file_io import get_cache_dir

from ..errors import UserError
from .conversion import convert
from .layouts import Layout, recognize, select_state
from .names import BOTTOM_UP
from .reading import load_checkpoint
from .transfer import stored_class_names

logger = logging.getLogger(__name__)

_CLASSIFIERS = (Layout.CLASSIFIER, Layout.TORCHVISION)


def detectron2_weights(path: str) -> tuple[str, list[str] | None]:
    """Return a checkpoint that detectron2's ``DetectionCheckpointer`` reads, and its class names.

    Published detectors, published ImageNet classifiers and torchvision ResNets are converted; the
    copy is kept in the cache of iopath. Any other file is returned itself.

    Args:
        path: a local file.

    Returns:
        The path, and the class names in the file; None if it has none.

    Raises:
        UserError: the file is not a checkpoint.
    """
    checkpoint = load_checkpoint(path)
    names = stored_class_names(checkpoint)
    layout = recognize(select_state(checkpoint))
    if layout is not Layout.PUBLISHED and layout not in _CLASSIFIERS:
        return path, names
    status = os.stat(path)
    key = f"{os.path.abspath(path)} {status.st_mtime_ns} {status.st_size}".encode()
    name = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.join(get_cache_dir(), "apa_det")
    copy = os.path.join(folder, f"{name}_{hashlib.sha256(key).hexdigest()[:12]}.pth")
    if not os.path.isfile(copy):
        state = convert(checkpoint).state
        if layout in _CLASSIFIERS:  # whose names detectron2 matches with any backbone
            state = {name.removeprefix(BOTTOM_UP): tensor for name, tensor in state.items()}
        content = {"model": state, "__author__": f"apa_det, from a {layout.value}"}
        content["matching_heuristics"] = layout in _CLASSIFIERS
        try:
            os.makedirs(folder, exist_ok=True)
            torch.save(content, f"{copy}.{os.getpid()}")
            os.replace(f"{copy}.{os.getpid()}", copy)  # other processes see a whole file
        except OSError as error:
            raise UserError(
                f"Cannot write {copy}, the copy of {path} for detectron2: {error.strerror}. Set "
                "the environment variable FVCORE_CACHE to a writable folder."
            ) from error
    logger.info("%s is a %s: detectron2 reads its converted copy %s.", path, layout.value, copy)
    return copy, names
