"""Convert checkpoints to detectron2's names and back, with a record of every tensor."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from tabulate import tabulate
from torch import Tensor, nn

from ..errors import UserError
from .layouts import Layout, recognize, select_state
from .names import (
    BOTTOM_UP,
    to_detectron2,
    to_detectron2_value,
    to_published,
    to_published_value,
)
from .published import partial_gates, published_config

logger = logging.getLogger(__name__)

Status = Literal[
    "same name", "renamed", "ignored", "initialized", "unexpected", "wrong shape", "missing"
]
_MISFITS = ("unexpected", "wrong shape", "missing")

# Tensors that no model uses: ImageNet classifiers and training state
_UNUSED = re.compile(
    r"((.*\.)?fc(1000)?|linear)\.(weight|bias)|fc1000_[wb]|.*_momentum|lr|weight_order|steps"
    r"|n_averaged|(.*\.)?pixel_(mean|std)|.*anchor_generator\.cell_anchors\..*"
)
# Buffers that evaluation does not use: a file or a model may lack them
OPTIONAL_BUFFERS = (
    "num_batches_tracked",
    "fed_loss_cls_weights",
    # statistics of the class losses
    "class_loss.sample_counts",
    "class_loss.positive_gradients",
    "class_loss.negative_gradients",
)
# Ends of the names of tensors that are of finite floats in every model
_FLOATS = (
    *(".weight", ".bias", ".running_mean", ".running_var", ".lambda_param", ".kappa_param"),
    *("_w", "_b"),  # in Caffe2
)
# Layouts that detectron2's checkpointer loads by itself
_DETECTRON2_LAYOUTS = (Layout.DETECTRON2, Layout.ZOO, None)
# One-element tensors that are published with shape (1,), which may differ in the model
_SCALARS = ("lambda_param", "kappa_param", ".temperature")
# Layouts that fill only the backbone, and the backbone tensors that they may lack
_EXTRAS = {
    Layout.CLASSIFIER: re.compile(r"(?!)"),
    Layout.TORCHVISION: re.compile(r".*\.(act\d?|gate)\..*"),
    Layout.ZOO: re.compile(r".*\.(act\d?|gate)\..*"),
    Layout.CAFFE2: re.compile(r".*\.(act\d?|gate)\..*|.*\.running_(mean|var)"),
}


Renamed = list[tuple[str, str | None, Tensor]]  # (old name, new name, tensor)
Expected = dict[str, Tensor] | None  # the state dict of a model


class TensorRecord(NamedTuple):
    """How one tensor was converted.

    Attributes:
        status: "initialized" tensors are not expected in the file and keep their initialization.
        source: name in the file, or None if the file lacks it.
        target: name in the result, or None if it has no counterpart there.
        shape: shape in the file, or None if the file lacks it.
        expected: shape in the model, or None if the model lacks it or there is no model.
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
        layout: layout of the input.
        state: all tensors that fit, by name.
        records: one per tensor of the input, and one per tensor of the model that the input lacks.
        config: the config that fits a published detector, as a sentence part; "" if unknown.
    """

    layout: Layout
    state: dict[str, Tensor]
    records: list[TensorRecord]
    config: str = ""

    def check(self) -> None:
        """Raise UserError if a tensor of the input does not fit or one of the model is missing."""
        misfits = [record for record in self.records if record.status in _MISFITS]
        if not misfits:
            return
        counts = Counter(record.status for record in misfits)
        status, source, target, shape, expected = misfits[0]
        example = {
            "unexpected": f"{source} is unexpected",
            "missing": f"{target} is missing",
            "wrong shape": f"{source} has shape {shape}, but the model's {target} has {expected}",
        }
        raise UserError(
            f"The checkpoint ({self.layout.value}) does not fit the model: {example[status]} "
            f"({', '.join(f'{n} {status}' for status, n in counts.items())}). Use the config that "
            f"it was trained with{self.config}, or convert only what fits (--allow-partial)."
        )

    def unfilled(self) -> list[str]:
        """Return the tensors of the model that keep their initialization, one entry per module."""
        statuses = ("missing", "wrong shape", "initialized")
        return [
            _joined(record.target for record in records)
            for records in self._modules()
            if records[0].status in statuses
        ]

    def table(self) -> str:
        """Format the records as a table with one line per module, and count each status."""
        lines = [
            (
                records[0].status,
                _joined(record.source for record in records),
                _joined(record.target for record in records),
                ", ".join(dict.fromkeys(map(_shapes, records))),
            )
            for records in self._modules()
        ]
        counts = Counter(record.status for record in self.records)
        return (
            tabulate(lines, headers=["status", "in the file", "in the result", "shape"])
            + "\n\n"
            + ", ".join(f"{n} {status}" for status, n in counts.items())
        )

    def _modules(self) -> list[list[TensorRecord]]:
        groups = defaultdict(list)
        for record in self.records:
            source, target = ((name or "").rpartition(".")[0] for name in record[1:3])
            groups[record.status, source, target].append(record)
        return list(groups.values())


def convert(checkpoint: dict, model: nn.Module | None = None, *, ema: bool = False) -> Conversion:
    """Rename the weights of a checkpoint to detectron2's names.

    Args:
        checkpoint: as returned by :func:`load_checkpoint`, in any :class:`Layout`.
        model: the model to convert for. Without it, neither shapes nor completeness are checked.
            An ImageNet classifier need only fill the backbone, and one without APA only its
            convolutions and norms; the other tensors of the model are "initialized".
        ema: convert the EMA weights instead of the weights.

    Raises:
        UserError: the checkpoint has no weights or an unknown layout; or there is no model, and
            only detectron2's heuristics can match the names; or see :func:`require_finite_floats`.
    """
    state = select_state(checkpoint, ema=ema)
    layout = recognize(state, matching_heuristics=checkpoint.get("matching_heuristics") is True)
    if layout is None:
        raise UserError(
            f"Unknown checkpoint layout, with names like {', '.join([*state][:3])}. Supported: "
            f"{', '.join(layout.value for layout in Layout)}."
        )
    expected = None if model is None else model.state_dict()
    renamed = _rename(state, layout, expected)
    conversion = _settle(layout, renamed, expected, describe_config(state))
    require_finite_floats(conversion.state, expected)
    conversion.records.extend(_missing(layout, renamed, expected or {}))
    return conversion


def describe_config(state: Mapping[str, Tensor]) -> str:
    """Return ", which is configs/..." for a published detector, else ""."""
    config = published_config(state)
    return f", which is {config}" if config else ""


def adapt(checkpoint: dict, model: nn.Module) -> dict:
    """Prepare a checkpoint for detectron2's checkpointer.

    Published and torchvision layouts are renamed; tensors without a counterpart keep their names,
    so that the checkpointer reports them. Files of detectron2's model zoo are marked for its
    matching heuristics. Everything else stays as it is.

    Args:
        checkpoint: as returned by :func:`load_checkpoint`.
        model: the model to load into.

    Returns:
        A dict with the entry "model".

    Raises:
        UserError: the checkpoint has no weights, or see :func:`require_finite_floats`.
    """
    state = select_state(checkpoint)
    heuristics = checkpoint.get("matching_heuristics") is True or "model_state" in checkpoint
    layout = recognize(state, matching_heuristics=heuristics)
    if layout is Layout.CAFFE2:
        state = {k: v for k, v in state.items() if not k.endswith("_momentum")}
        return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}
    expected = model.state_dict()
    if not state.keys().isdisjoint(expected) or layout in _DETECTRON2_LAYOUTS:
        adapted = checkpoint if "model" in checkpoint else {}
        require_finite_floats(state, expected)
        heuristics = heuristics or layout is Layout.ZOO
        return {**adapted, "model": state, "matching_heuristics": heuristics}
    logger.info("Renaming the tensors of a %s to detectron2's names.", layout.value)
    renamed = _rename(state, layout, expected)
    model_state = {target or source: tensor for source, target, tensor in renamed}
    require_finite_floats(model_state, expected)
    return {"model": model_state}


def require_finite_floats(state: Mapping[str, Tensor], expected: Expected) -> None:
    """Check the values of weights, which loading would convert to floats silently.

    Args:
        state: the weights, under the model's names.
        expected: the model's state dict. None: its names are unknown, so only weights, biases,
            norm statistics, λ and κ are known to be floats.

    Raises:
        UserError: a tensor is not of floats but the model's is, or has NaN or infinite values but
            the model's has none.
    """
    for name, tensor in state.items():
        own = tensor if expected is None else expected.get(name)
        if own is None:
            continue
        floats = own.is_floating_point()
        if expected is None:
            floats = floats or own.is_complex() or name.endswith(_FLOATS)
        if not floats:
            continue
        if not tensor.is_floating_point():
            known = "" if expected is None else f", but the model's is of {_dtype(own)}"
            raise UserError(f"{name} is of {_dtype(tensor)}{known}: save it as floats.")
        if expected is not None:  # a mask of the model may have infinite values
            valid = tensor.to(own.dtype).isfinite().all() or not own.isfinite().all()
        elif name.endswith(_FLOATS):
            valid = tensor.isfinite().all()
        else:
            valid = not tensor.isnan().any()
        if not valid:
            raise UserError(
                f"{name} has NaN or infinite values, so the training diverged or the file is "
                "damaged: use another checkpoint."
            )


def reverse(state: dict[str, Tensor]) -> Conversion:
    """Rename weights from detectron2's names to those of the published detector.

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
        tensor = to_published_value(target or "", tensor)
        renamed.append((name, target, tensor))
    return _settle(Layout.DETECTRON2, renamed, None)


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
        tensor = to_detectron2_value(prefix + name, tensor)
        if target is not None and target.startswith(BOTTOM_UP):
            target = bottom_up + target.removeprefix(BOTTOM_UP)
        if expected is None and name.endswith(".tempearture") and tensor.numel() == 1:
            tensor = tensor.reshape(())  # the shape in NormedConv2d
        elif tensor.numel() == 1 and target in (expected or {}) and expected[target].numel() == 1:
            tensor = tensor.reshape(expected[target].shape)
        renamed.append((name, target, tensor))
    return renamed


def _align(state: dict[str, Tensor], layout: Layout, expected: Expected) -> Renamed:
    """Match names by detectron2's heuristics, which compare their ends with those of a model."""
    if expected is None:
        raise UserError(
            f"The names of this checkpoint ({layout.value}) can only be matched against a model. "
            "Give the model's config (--config-file)."
        )
    useful = {name: tensor for name, tensor in state.items() if not _UNUSED.fullmatch(name)}
    aligned = align_and_update_state_dicts(expected, useful, c2_conversion=layout is Layout.CAFFE2)
    sources = {id(tensor): name for name, tensor in state.items()}
    return [
        *((sources.get(id(tensor), name), name, tensor) for name, tensor in aligned.items()),
        *((name, None, tensor) for name, tensor in state.items() if name not in useful),
    ]


def _bottom_up(expected: Expected) -> str:
    return "backbone." if "backbone.stem.conv1.weight" in (expected or {}) else BOTTOM_UP


def _settle(layout: Layout, renamed: Renamed, expected: Expected, config: str = "") -> Conversion:
    state, records = {}, []
    for source, target, tensor in renamed:
        shape, expected_shape = tuple(tensor.shape), None
        if target is not None and target in (expected or {}):
            expected_shape = tuple(expected[target].shape)
        elif expected is not None and not (target or "").endswith(OPTIONAL_BUFFERS):
            target = None
        if target is None:
            status = "ignored" if _UNUSED.fullmatch(source) else "unexpected"
        elif expected_shape not in (None, shape):
            status = "wrong shape"
        else:
            status = "same name" if source == target else "renamed"
            state[target] = tensor
        records.append(TensorRecord(status, source, target, shape, expected_shape))
    return Conversion(layout, state, records, config)


def _missing(
    layout: Layout, renamed: Renamed, expected: dict[str, Tensor]
) -> Iterable[TensorRecord]:
    filled = {target: tensor for _, target, tensor in renamed if target is not None}
    partial = tuple(f"{gate}." for gate in partial_gates(filled, expected))
    for name, tensor in expected.items():
        if name not in filled and not name.endswith(OPTIONAL_BUFFERS):
            needed = (
                layout not in _EXTRAS
                or name.startswith(partial)
                or (name.startswith(_bottom_up(expected)) and not _EXTRAS[layout].fullmatch(name))
            )
            status = "missing" if needed else "initialized"
            yield TensorRecord(status, None, name, None, tuple(tensor.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _joined(names: Iterable[str | None]) -> str:
    """Join the names of one module: ``conv1.{bias, weight}``."""
    parts = [name.rpartition(".") for name in names if name is not None]
    if not parts:
        return ""
    module, dot, leaf = parts[0]
    if len(parts) > 1:
        leaf = "{" + ", ".join(part for *_, part in parts) + "}"
    return module + dot + leaf


def _shapes(record: TensorRecord) -> str:
    if record.status == "wrong shape":
        return f"{record.shape} for {record.expected}"
    return str(record.shape if record.shape is not None else record.expected)
