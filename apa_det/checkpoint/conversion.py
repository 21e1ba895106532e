"""Conversion of checkpoints to detectron2's names and back, with an account of every tensor."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from tabulate import tabulate
from torch import Tensor, nn

from .layouts import Layout, recognize, select_state
from .names import BOTTOM_UP, to_detectron2, to_published

__all__ = ["Account", "Conversion", "adapt", "convert", "reverse"]

logger = logging.getLogger(__name__)

Status = Literal[
    "same name", "renamed", "left out", "as configured", "unexpected", "wrong shape", "missing"
]
_MISFITS = ("unexpected", "wrong shape", "missing")

# What no model takes: a classifier of ImageNet, and what training stores beside the weights.
_USELESS = re.compile(
    r"((.*\.)?fc(1000)?|linear)\.(weight|bias)|fc1000_[wb]|.*_momentum|lr|weight_order|steps"
    r"|n_averaged|(.*\.)?pixel_(mean|std)|.*anchor_generator\.cell_anchors\..*"
)
# Buffers that a file and a model may or may not hold: evaluation makes no use of them.
OPTIONAL_BUFFERS = (
    "num_batches_tracked",
    "fed_loss_cls_weights",
    # what a class loss gathers in training
    "class_loss.sample_counts",
    "class_loss.positive_gradients",
    "class_loss.negative_gradients",
)
# What detectron2's checkpointer takes, where it takes anything.
_DETECTRON2S = (Layout.DETECTRON2, Layout.ZOO, None)
# Published with shape (1,), whatever shape of one element the model has.
_SCALARS = ("lambda_param", "kappa_param", ".temperature")
# What a backbone of this project may have, and files of plain ResNets do not.
_EXTRAS = {
    Layout.CLASSIFIER: re.compile(r"(?!)"),
    Layout.TORCHVISION: re.compile(r".*\.(act\d?|gate)\..*"),
    Layout.ZOO: re.compile(r".*\.(act\d?|gate)\..*"),
    Layout.CAFFE2: re.compile(r".*\.(act\d?|gate)\..*|.*\.running_(mean|var)"),
}


class Account(NamedTuple):
    """What becomes of one tensor.

    ``source`` is its name in the file and ``target`` that in the result; ``shape`` is its shape in
    the file, and ``expected`` the shape in the model. None: there is no such.
    """

    status: Status
    source: str | None
    target: str | None
    shape: tuple[int, ...] | None
    expected: tuple[int, ...] | None


@dataclass(frozen=True)
class Conversion:
    """A converted state dict.

    Attributes:
        layout: that of the input.
        state: name to tensor, of all that fits.
        accounts: of every tensor of the input, and of every one of the model that it lacks.
    """

    layout: Layout
    state: dict[str, Tensor]
    accounts: list[Account]

    def check(self) -> None:
        """Raise a ValueError unless every tensor has a place, and every place a tensor."""
        misfits = [a for a in self.accounts if a.status in _MISFITS]
        if not misfits:
            return
        counts = Counter(a.status for a in misfits)
        status, source, target, shape, expected = misfits[0]
        example = {
            "unexpected": f"{source} has no place",
            "missing": f"{target} is not in it",
            "wrong shape": f"{source} has shape {shape}, and the model's {target} {expected}",
        }
        raise ValueError(
            f"It is a {self.layout.value} that does not fit: {example[status]} "
            f"({', '.join(f'{n} {status}' for status, n in counts.items())}). Give the config of "
            "the model that it is from, or allow a partial conversion."
        )

    def unfilled(self) -> list[str]:
        """The names of the model that the state leaves as they are, a line for each module."""
        statuses = ("missing", "wrong shape", "as configured")
        return [
            _joined(account.target for account in accounts)
            for accounts in self._modules()
            if accounts[0].status in statuses
        ]

    def table(self) -> str:
        """The accounts, a line for each module, and the counts."""
        lines = [
            (
                accounts[0].status,
                _joined(account.source for account in accounts),
                _joined(account.target for account in accounts),
                ", ".join(dict.fromkeys(map(_shapes, accounts))),
            )
            for accounts in self._modules()
        ]
        counts = Counter(account.status for account in self.accounts)
        return (
            tabulate(lines, headers=["", "in the file", "becomes", "shape"])
            + "\n\n"
            + ", ".join(f"{n} {status}" for status, n in counts.items())
        )

    def _modules(self) -> list[list[Account]]:
        groups = defaultdict(list)
        for account in self.accounts:
            source, target = ((name or "").rpartition(".")[0] for name in account[1:3])
            groups[account.status, source, target].append(account)
        return list(groups.values())


def convert(checkpoint: dict, model: nn.Module | None = None, *, ema: bool = False) -> Conversion:
    """Give the weights of a checkpoint the names that they have in detectron2.

    Args:
        checkpoint: as :func:`load_checkpoint` returns it, in any layout of :class:`Layout`.
        model: the model that it is for. Without it names are looked up, and neither shapes nor
            completeness. A classifier need only fill the backbone, and one without APA only the
            convolutions and norms of that; the rest is accounted for "as configured".
        ema: take the moving averages of the weights.

    Raises:
        ValueError: it holds no weights, or none in a known layout; or only detectron2's heuristics
            can match them, and there is no model.
    """
    state = select_state(checkpoint, ema=ema)
    layout = recognize(state, matching_heuristics=checkpoint.get("matching_heuristics") is True)
    if layout is None:
        raise ValueError(
            f"The checkpoint is in no known layout: it has names such as {', '.join([*state][:3])}."
        )
    expected = None if model is None else model.state_dict()
    renamed = _rename(state, layout, expected)
    conversion = _settle(layout, renamed, expected)
    conversion.accounts.extend(_lacking(layout, renamed, expected or {}))
    return conversion


def adapt(checkpoint: dict, model: nn.Module) -> dict:
    """Make a checkpoint one that detectron2's checkpointer can load into a model.

    A published or torchvision layout gets detectron2's names; what has no name there keeps its own,
    so that the checkpointer reports it. Files of detectron2's model zoo are marked for its
    heuristics, and anything else is taken as it is.

    Args:
        checkpoint: as :func:`load_checkpoint` returns it.
        model: the model to be filled.

    Returns:
        A dict with the entry "model".

    Raises:
        ValueError: it holds no weights.
    """
    state = select_state(checkpoint)
    heuristics = checkpoint.get("matching_heuristics") is True or "model_state" in checkpoint
    layout = recognize(state, matching_heuristics=heuristics)
    if layout is Layout.CAFFE2:
        state = {k: v for k, v in state.items() if not k.endswith("_momentum")}
        return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}
    expected = model.state_dict()
    if not state.keys().isdisjoint(expected) or layout in _DETECTRON2S:
        adapted = checkpoint if "model" in checkpoint else {"model": state}
        return {**adapted, "matching_heuristics": heuristics or layout is Layout.ZOO}
    logger.info("The checkpoint is a %s: it is given detectron2's names.", layout.value)
    renamed = _rename(state, layout, expected)
    return {"model": {target or source: tensor for source, target, tensor in renamed}}


def reverse(state: dict[str, Tensor]) -> Conversion:
    """Give weights with detectron2's names those of the published detector.

    Args:
        state: as in :attr:`Conversion.state`.
    """
    cbam = any(".gate.spatial_conv." in name for name in state)
    renamed = []
    for name, tensor in state.items():
        source = name
        if name.startswith("backbone.") and to_published(name, cbam=cbam) is None:
            source = BOTTOM_UP + name.removeprefix("backbone.")
        target = to_published(source, cbam=cbam)
        if tensor.numel() == 1 and name.endswith(_SCALARS):
            tensor = tensor.reshape(1)
        renamed.append((name, target, tensor))
    return _settle(Layout.DETECTRON2, renamed, None)


Renamed = list[tuple[str, str | None, Tensor]]  # old name, new one, and the tensor
Expected = dict[str, Tensor] | None  # the state dict of a model


def _rename(state: dict[str, Tensor], layout: Layout, expected: Expected) -> Renamed:
    if layout is Layout.DETECTRON2:
        return [(name, name, tensor) for name, tensor in state.items()]
    if layout in (Layout.ZOO, Layout.CAFFE2):
        return _align(state, layout, expected)
    prefix = "" if layout is Layout.PUBLISHED else "backbone."
    bottom_up = _bottom_up(expected)
    renamed = []
    for name, tensor in state.items():
        target = to_detectron2(prefix + name)
        if target is not None and target.startswith(BOTTOM_UP):
            target = bottom_up + target.removeprefix(BOTTOM_UP)
        if expected is None and name.endswith(".tempearture"):
            tensor = tensor.reshape(())  # as NormedConv2d has it
        elif tensor.numel() == 1 and target in (expected or {}) and expected[target].numel() == 1:
            tensor = tensor.reshape(expected[target].shape)
        renamed.append((name, target, tensor))
    return renamed


def _align(state: dict[str, Tensor], layout: Layout, expected: Expected) -> Renamed:
    """By detectron2's heuristics, which compare the ends of names with those of a model."""
    if expected is None:
        raise ValueError(
            f"This is a {layout.value}, whose names only fit those of a model: give its config."
        )
    useful = {name: tensor for name, tensor in state.items() if not _USELESS.fullmatch(name)}
    aligned = align_and_update_state_dicts(expected, useful, c2_conversion=layout is Layout.CAFFE2)
    sources = {id(tensor): name for name, tensor in state.items()}
    return [
        *((sources.get(id(tensor), name), name, tensor) for name, tensor in aligned.items()),
        *((name, None, tensor) for name, tensor in state.items() if name not in useful),
    ]


def _bottom_up(expected: Expected) -> str:
    return "backbone." if "backbone.stem.conv1.weight" in (expected or {}) else BOTTOM_UP


def _settle(layout: Layout, renamed: Renamed, expected: Expected) -> Conversion:
    state, accounts = {}, []
    for source, target, tensor in renamed:
        shape, expected_shape = tuple(tensor.shape), None
        if target is not None and target in (expected or {}):
            expected_shape = tuple(expected[target].shape)
        elif expected is not None and not (target or "").endswith(OPTIONAL_BUFFERS):
            target = None
        if target is None:
            status = "left out" if _USELESS.fullmatch(source) else "unexpected"
        elif expected_shape not in (None, shape):
            status = "wrong shape"
        else:
            status = "same name" if source == target else "renamed"
            state[target] = tensor
        accounts.append(Account(status, source, target, shape, expected_shape))
    return Conversion(layout, state, accounts)


def _lacking(layout: Layout, renamed: Renamed, expected: dict[str, Tensor]) -> Iterable[Account]:
    filled = {target for _, target, _ in renamed}
    for name, tensor in expected.items():
        if name not in filled and not name.endswith(OPTIONAL_BUFFERS):
            needed = layout not in _EXTRAS or (
                name.startswith(_bottom_up(expected)) and not _EXTRAS[layout].fullmatch(name)
            )
            status = "missing" if needed else "as configured"
            yield Account(status, None, name, None, tuple(tensor.shape))


def _joined(names: Iterable[str | None]) -> str:
    """Names of one module as one: ``conv1.{bias, weight}``."""
    parts = [name.rpartition(".") for name in names if name is not None]
    if not parts:
        return ""
    module, dot, leaf = parts[0]
    if len(parts) > 1:
        leaf = "{" + ", ".join(part for *_, part in parts) + "}"
    return module + dot + leaf


def _shapes(account: Account) -> str:
    if account.status == "wrong shape":
        return f"{account.shape} for {account.expected}"
    return str(account.shape if account.shape is not None else account.expected)
