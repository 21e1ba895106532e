"""Fusion of norm, gate, shortcut and AGLU, where the norm uses running statistics."""

from collections.abc import Sequence

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from ..activation import AGLU
from .gates import SEGate, average_pool
from .norm import EvalBatchNorm2d, scale_and_shift


def can_fuse(
    conv: nn.Module, activation: nn.Module, gate: nn.Module | None = None, *, shortcut: bool = False
) -> bool:
    """Return whether the layers after a convolution of detectron2 can be fused, in this mode.

    Modules with hooks are not fused. If a shortcut is added before the activation, layers without a
    norm, e.g. after :func:`apa_det.fuse`, can be fused too.
    """
    norm = getattr(conv, "norm", None)
    return (
        isinstance(conv, nn.Conv2d)
        and getattr(conv, "activation", None) is None
        and type(activation) is AGLU
        and (gate is None or type(gate) is SEGate)
        and (shortcut if norm is None else _uses_running_statistics(norm))
        and not any(_has_hooks(m) for m in (conv, norm, activation, gate) if m is not None)
    )


def conv_norm_aglu(x: Tensor, conv: nn.Conv2d, activation: AGLU) -> Tensor:
    """Compute AGLU(norm(conv(x))); requires :func:`can_fuse`."""
    x = conv._conv_forward(x, conv.weight, conv.bias)
    return activation.affine(x, *_scale_and_shift(conv.norm))


def norm_gate_shortcut_aglu(
    x: Tensor, conv: nn.Conv2d, gate: SEGate | None, shortcut: Tensor, activation: AGLU
) -> Tensor:
    """Compute AGLU(gate(norm(conv(x))) + shortcut); requires :func:`can_fuse`.

    The gate's input, the mean of the normalized map, is the normalized mean. The gate then
    multiplies the scale and shift of the norm.
    """
    x = conv._conv_forward(x, conv.weight, conv.bias)
    scale, shift = _scale_and_shift(conv.norm)
    if gate is not None:
        pooled = average_pool(x, keepdim=True) * scale + shift
        gates = gate.gates(pooled.flatten(1))[:, :, None, None]
        scale, shift = scale * gates, shift * gates
    return activation.affine(x, scale, shift, shortcut)


def _has_hooks(module: nn.Module) -> bool:
    names = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(module, name) for name in names)


def _uses_running_statistics(norm: nn.Module) -> bool:
    if isinstance(norm, (EvalBatchNorm2d, FrozenBatchNorm2d)):
        return True
    is_batch_norm = isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    return is_batch_norm and not norm.training and norm.track_running_stats


def _scale_and_shift(norm: nn.Module | None) -> Sequence[Tensor | float]:
    if norm is None:
        return 1.0, 0.0
    return [t[None, :, None, None] for t in scale_and_shift(norm)]
