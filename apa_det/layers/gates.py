"""Attention gates: SE (channels), CBAM (channels, then positions) and spatial (positions)."""

import math
from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..activation import APA
from ..errors import UserError
from .activations import Activation
from .norm import Norm, norm_from_name

Gate = str | Callable[[int], nn.Module | None] | None

GATE_REGISTRY = Registry("GATE")
GATE_REGISTRY.__doc__ = """
Registry of gates, for ``MODEL.APA.GATE``.

Entries are callables ``(num_channels: int, **gate_args) -> nn.Module`` with the arguments of
:class:`SEGate`.
"""


class SEGate(nn.Module):
    """Channel attention: average pool, LayerNorm, two linear layers, dropout, activation.

    The layout is that of Alexandridis et al. (ECCV 2024), based on "Squeeze-and-Excitation
    Networks" (Hu et al., CVPR 2018). Feature vectors (N, C) are gated without pooling. The original
    gate, ``layer_norm=False, dropout=0, activation="sigmoid"``, is named "plain_se".

    Args:
        num_channels: number C of input channels.
        activation: "apa", "sigmoid", or a callable that builds a module for a number of channels.
        reduction: the hidden layer has max(C // reduction, 1) channels.
        dropout: dropout probability after the last linear layer.
        layer_norm: normalize the pooled features by a LayerNorm.
        top_share: fraction of channels with nonzero gates; see :func:`keep_strongest`.

    Raises:
        UserError: if ``top_share`` is not in (0, 1].
    """

    def __init__(
        self,
        num_channels: int,
        *,
        activation: Activation = "apa",
        reduction: int = 16,
        dropout: float = 0.1,
        layer_norm: bool = True,
        top_share: float = 1.0,
    ):
        super().__init__()
        self.top_share = _check_share(top_share)
        hidden = max(num_channels // reduction, 1)
        self.norm = nn.LayerNorm(num_channels) if layer_norm else nn.Identity()
        self.fc1 = nn.Linear(num_channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, num_channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.activation = get_gate_activation(activation, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, of shape (N, C, H, W) or (N, C), by its gates."""
        gates = self.gates(average_pool(x) if x.dim() == 4 else x)
        return x * (gates[:, :, None, None] if x.dim() == 4 else gates)

    def gates(self, pooled: Tensor) -> Tensor:
        """Compute the gates, of shape (N, C), of pooled features of shape (N, C)."""
        z = self.fc2(self.fc1(self.norm(pooled)).relu())
        return keep_strongest(self.activation(self.dropout(z)), self.top_share)


def average_pool(x: Tensor, keepdim: bool = False) -> Tensor:
    """Return the mean over positions of x, of shape (N, C, H, W).

    The gradient of a mean is written out for each position; that of a sum is an expanded view.
    """
    if x.dtype != torch.float32 or not x.requires_grad:  # a sum can overflow float16
        return x.mean(dim=(2, 3), keepdim=keepdim)
    return x.sum(dim=(2, 3), keepdim=keepdim) / (x.shape[2] * x.shape[3])


class _SpatialAttention(nn.Module):
    """A gate with max and mean over channels, a 7×7 convolution, a norm and an activation."""

    def _add_spatial(self, activation: Activation, norm: Norm) -> None:
        self.spatial_conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.spatial_norm = get_norm(norm_from_name(norm), 1)
        self.spatial_activation = get_gate_activation(activation, 1)

    def _gate_positions(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * self.spatial_activation(self.spatial_norm(self.spatial_conv(pooled)))


class SpatialGate(_SpatialAttention):
    """Spatial attention: the second half of :class:`CBAMGate`.

    Args:
        activation: as in :class:`SEGate`; it has one channel.
        norm: norm of the convolution, "EvalBN" or see :func:`detectron2.layers.get_norm`.
    """

    def __init__(self, *, activation: Activation = "apa", norm: Norm = "BN"):
        super().__init__()
        self._add_spatial(activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, of shape (N, C, H, W), by its gates."""
        return self._gate_positions(x)


class CBAMGate(_SpatialAttention):
    """Channel attention, then spatial attention.

    The layout is that of Alexandridis et al. (ECCV 2024), based on "CBAM: Convolutional Block
    Attention Module" (Woo et al., ECCV 2018). Channel attention: average and max pooling, each
    through the same LayerNorm and linear layers, summed. Spatial attention: max and mean over
    channels, through a 7×7 convolution and a norm.

    Args:
        spatial_activation: activation of the spatial attention. None: ``activation``.
        norm: norm of the spatial convolution, "EvalBN" or see :func:`detectron2.layers.get_norm`.
        others: as in :class:`SEGate`, with the same error. ``top_share`` does not apply to spatial
            attention, whose activation has one channel.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        activation: Activation = "apa",
        spatial_activation: Activation | None = None,
        reduction: int = 16,
        dropout: float = 0.1,
        top_share: float = 1.0,
        norm: Norm = "BN",
    ):
        super().__init__()
        self.top_share = _check_share(top_share)
        hidden = max(num_channels // reduction, 1)
        self.norm = nn.LayerNorm(num_channels)
        self.fc1 = nn.Linear(num_channels, hidden)
        self.fc2 = nn.Linear(hidden, num_channels)
        self.dropout = nn.Dropout(dropout)
        self.activation = get_gate_activation(activation, num_channels)
        self._add_spatial(spatial_activation or activation, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x, of shape (N, C, H, W), by its gates."""
        z = self._excite(x.mean(dim=(2, 3))) + self._excite(x.amax(dim=(2, 3)))
        x = x * keep_strongest(self.activation(z), self.top_share)[:, :, None, None]
        return self._gate_positions(x)

    def _excite(self, pooled: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.fc1(self.norm(pooled)).relu()))


def keep_strongest(gates: Tensor, share: float) -> Tensor:
    """Keep the k = ⌈share · C⌉ strongest gates of each row; set the others to 0.

    "k-Sparse Autoencoders" (Makhzani and Frey, ICLR 2014), algorithm 1. ``gates`` has shape (N, C),
    ``share`` is in (0, 1]. Gates set to 0 get no gradient.
    """
    channels = gates.shape[1]
    k = math.ceil(share * channels - 1e-6)  # 0.07 · 100 > 7 in floating point
    if k >= channels:
        return gates
    strongest = gates.topk(k, dim=1).indices
    return torch.zeros_like(gates).scatter(1, strongest, gates.gather(1, strongest))


def _check_share(share: float) -> float:
    if not 0 < share <= 1:
        raise UserError(
            f"MODEL.APA.GATE_TOP_SHARE (top_share of a gate) must be in (0, 1], got {share}."
        )
    return float(share)


def get_gate_activation(
    activation: Activation, num_channels: int, *, per_channel: bool = False, **apa_args
) -> nn.Module:
    """Build the activation of a gate.

    Args:
        activation: "apa", "sigmoid", or a callable that builds a module for a number of channels.
        num_channels: number of channels of its input.
        per_channel: if True, λ and κ of APA are per channel.
        apa_args: ``lambda_range``, ``kappa_range`` and ``lambda_min`` of
            :class:`apa_det.activation.APA`.

    Raises:
        UserError: if the name is unknown.
    """
    if callable(activation):
        return activation(num_channels)
    if activation == "apa":
        return APA(num_channels if per_channel else None, **apa_args)
    if activation == "sigmoid":
        return nn.Sigmoid()
    raise UserError(f"Unknown gate activation {activation!r}; expected apa or sigmoid.")


@GATE_REGISTRY.register()
def se(num_channels: int, **gate_args) -> nn.Module:
    """Build channel attention: see :class:`SEGate`."""
    return SEGate(num_channels, **gate_args)


@GATE_REGISTRY.register()
def plain_se(num_channels: int, **gate_args) -> nn.Module:
    """Build the original SE gate: no LayerNorm, no dropout, and a sigmoid."""
    gate_args.update(layer_norm=False, dropout=0.0, activation="sigmoid")
    return SEGate(num_channels, **gate_args)


@GATE_REGISTRY.register()
def cbam(num_channels: int, **gate_args) -> nn.Module:
    """Build channel and spatial attention: see :class:`CBAMGate`."""
    return CBAMGate(num_channels, **gate_args)


@GATE_REGISTRY.register()
def spatial(num_channels: int, **gate_args) -> nn.Module:
    """Build spatial attention: see :class:`SpatialGate`, whose arguments it takes."""
    activation = gate_args.get("spatial_activation") or gate_args.get("activation", "apa")
    return SpatialGate(activation=activation, norm=gate_args.get("norm", "BN"))


def get_gate(gate: Gate, num_channels: int, **gate_args) -> nn.Module | None:
    """Build a gate; return None for "none" and None.

    Args:
        gate: a name in :data:`GATE_REGISTRY` ("se", "plain_se", "cbam" or "spatial"), "none" or
            None, or a callable that builds a module for a number of channels.
        num_channels: number of channels of its input.
        gate_args: further arguments of :class:`SEGate` or :class:`CBAMGate`.

    Raises:
        UserError: if the name is unknown.
    """
    if gate is None or gate == "none":
        return None
    if callable(gate):
        return gate(num_channels)
    if gate not in GATE_REGISTRY:
        names = ", ".join(["none", *sorted(name for name, _ in GATE_REGISTRY)])
        raise UserError(f"Unknown gate {gate!r}; expected one of {names}.")
    return GATE_REGISTRY.get(gate)(num_channels, **gate_args)


def gate_from_config(cfg: CfgNode, gate: str) -> Callable[[int], nn.Module | None]:
    """Return :func:`get_gate` of a name with the settings of ``MODEL.APA`` bound.

    The one-channel spatial convolution of a CBAM gate uses the batch norm of
    ``MODEL.RESNETS.NORM``, or BN if that is not a batch norm.
    """
    apa, norm = cfg.MODEL.APA, cfg.MODEL.RESNETS.NORM
    apa_args = {
        "per_channel": apa.GATE_PER_CHANNEL,
        "lambda_range": tuple(apa.GATE_LAMBDA_RANGE),
        "kappa_range": tuple(apa.GATE_KAPPA_RANGE),
        "lambda_min": apa.LAMBDA_MIN,
    }
    spatial_args = {}
    if gate in ("cbam", "spatial"):
        name = apa.GATE_SPATIAL_ACTIVATION or apa.GATE_ACTIVATION
        spatial_args = {
            "spatial_activation": partial(get_gate_activation, name, **apa_args),
            "norm": norm if norm.endswith("BN") else "BN",
        }
    return partial(
        get_gate,
        gate,
        activation=partial(get_gate_activation, apa.GATE_ACTIVATION, **apa_args),
        reduction=apa.GATE_REDUCTION,
        dropout=apa.GATE_DROPOUT,
        top_share=apa.GATE_TOP_SHARE,
        **spatial_args,
    )
