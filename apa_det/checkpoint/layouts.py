"""Find the weights in a checkpoint, and recognize their layout."""

import logging
from collections.abc import Collection
from enum import Enum

from torch import Tensor

from ..errors import UserError
from ..text import printable

logger = logging.getLogger(__name__)


class Layout(Enum):
    """Known layouts; the values name them in messages."""

    PUBLISHED = "published detector"
    CLASSIFIER = "published ImageNet classifier"
    TORCHVISION = "torchvision ResNet"
    DETECTRON2 = "detectron2"
    CAFFE2 = "Caffe2"
    ZOO = "backbone of detectron2's model zoo"


_STATES = ("state_dict", "model", "model_state", "blobs")
_MAX_NAME = 500  # characters
_AVERAGES = ("ema_state_dict", "state_dict_ema", "model_ema")


def recognize(names: Collection[str], *, matching_heuristics: bool = False) -> Layout | None:
    """Return the layout of a state dict with these names, or None if it is unknown.

    Args:
        names: the names, without a ``module.`` prefix.
        matching_heuristics: the entry of that name in a detectron2 checkpoint.
    """
    published = ("backbone.layer1.", "neck.", "rpn_head.", "roi_head.")
    if any(name.startswith(published) for name in names):
        return Layout.PUBLISHED
    if "layer1.0.conv1.weight" in names:
        apa = any(name.endswith(".lambda_param") for name in names)
        return Layout.CLASSIFIER if apa else Layout.TORCHVISION
    if not any("." in name for name in names):
        return Layout.CAFFE2
    if matching_heuristics or "stem.conv1.weight" in names:
        return Layout.ZOO
    if any(name.startswith(("backbone.", "proposal_generator.", "roi_heads.")) for name in names):
        return Layout.DETECTRON2
    return None


def select_state(checkpoint: dict, *, ema: bool = False) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, without the prefix ``module.`` of its names.

    EMA weights are either a separate state dict (``ema_state_dict``, ``state_dict_ema`` or
    ``model_ema``) or buffers beside the weights, named ``ema_`` plus the name of the weight, with
    dots or underscores.

    Args:
        checkpoint: as returned by :func:`load_checkpoint`.
        ema: return the EMA weights instead of the weights.

    Raises:
        UserError: there is no state dict, or there are no EMA weights, or a name does not print.
    """
    state = _tensors(_first_dict(checkpoint, _STATES) or checkpoint)
    if not state:
        raise UserError(
            "The checkpoint has no weights, only these entries: "
            f"{', '.join(map(printable, list(checkpoint)[:10])) or 'none'}."
        )
    averages = _tensors(_first_dict(checkpoint, _AVERAGES) or {})
    buffers = {}
    for name in list(state):
        for buffer in (f"ema_{name}", "ema_" + name.replace(".", "_")):
            if buffer in state:
                buffers[name] = state.pop(buffer)
    if not ema:
        if averages or buffers:
            logger.info("The checkpoint also has EMA weights; using the plain weights.")
        return state
    if not averages and not buffers:
        raise UserError("The checkpoint has no EMA weights. Leave out --ema.")
    return averages or {**state, **buffers}


def _first_dict(checkpoint: dict, names: tuple[str, ...]) -> dict | None:
    return next((checkpoint[n] for n in names if isinstance(checkpoint.get(n), dict)), None)


def _tensors(state: dict) -> dict[str, Tensor]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    plain = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    if len(plain) < len(tensors):
        raise UserError("The checkpoint has names both with and without the prefix 'module.'")
    for name in plain:
        if printable(name, _MAX_NAME) != name:
            raise UserError(
                f"The checkpoint has a tensor with an invalid name, {printable(name)}: get the "
                "file from a source that you trust."
            )
    return plain
