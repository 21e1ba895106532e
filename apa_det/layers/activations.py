"""Activations by name."""

from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..activation import AGLU
from ..activation import aglu as evaluate_aglu

__all__ = ["ACTIVATION_REGISTRY", "Swish", "activation_from_config", "get_activation"]

ACTIVATION_REGISTRY = Registry("ACTIVATION")
ACTIVATION_REGISTRY.__doc__ = """
Activations, by the names that ``MODEL.APA.ACTIVATION`` and the like take.

Each is a callable ``(num_channels: int | None, **aglu_args) -> nn.Module``. ``num_channels`` is
None unless learned parameters are per channel; ``aglu_args`` are those of
:class:`apa_det.activation.AGLU`.
"""


@ACTIVATION_REGISTRY.register()
def aglu(num_channels: int | None = None, **aglu_args) -> nn.Module:
    """x · η(x; λ, κ): "Adaptive Parametric Activation" (Alexandridis et al., ECCV 2024)."""
    return AGLU(num_channels, **aglu_args)


@ACTIVATION_REGISTRY.register()
def relu(num_channels: int | None = None, **_) -> nn.Module:
    """max(x, 0): "Rectified Linear Units Improve Restricted Boltzmann Machines" (Nair and Hinton,
    ICML 2010)."""
    return nn.ReLU(inplace=True)


@ACTIVATION_REGISTRY.register()
def leaky_relu(num_channels: int | None = None, **_) -> nn.Module:
    """max(x, x / 100): "Rectifier Nonlinearities Improve Neural Network Acoustic Models" (Maas et
    al., ICML workshop 2013)."""
    return nn.LeakyReLU(inplace=True)


@ACTIVATION_REGISTRY.register()
def prelu(num_channels: int | None = None, **_) -> nn.Module:
    """max(x, 0) + a min(x, 0), a learned, 0.25 at the start: "Delving Deep into Rectifiers" (He et
    al., ICCV 2015), equation 1."""
    return nn.PReLU(num_channels or 1)


@ACTIVATION_REGISTRY.register()
def elu(num_channels: int | None = None, **_) -> nn.Module:
    """max(x, 0) + min(eˣ − 1, 0): "Fast and Accurate Deep Network Learning by Exponential Linear
    Units" (Clevert et al., ICLR 2016), equation 15 with α = 1."""
    return nn.ELU(inplace=True)


@ACTIVATION_REGISTRY.register()
def gelu(num_channels: int | None = None, **_) -> nn.Module:
    """x · Φ(x), Φ the standard normal distribution function: "Gaussian Error Linear Units"
    (Hendrycks and Gimpel, 2016), section 2."""
    return nn.GELU()


@ACTIVATION_REGISTRY.register()
def silu(num_channels: int | None = None, **_) -> nn.Module:
    """x · sigmoid(x): "Gaussian Error Linear Units" (Hendrycks and Gimpel, 2016), section 2."""
    return nn.SiLU(inplace=True)


@ACTIVATION_REGISTRY.register()
def swish(num_channels: int | None = None, **_) -> nn.Module:
    """x · sigmoid(βx), β learned: see :class:`Swish`."""
    return Swish(num_channels)


@ACTIVATION_REGISTRY.register()
def mish(num_channels: int | None = None, **_) -> nn.Module:
    """x · tanh(softplus(x)): "Mish: A Self Regularized Non-Monotonic Activation Function" (Misra,
    BMVC 2020), equation 1."""
    return nn.Mish(inplace=True)


@ACTIVATION_REGISTRY.register()
def hardswish(num_channels: int | None = None, **_) -> nn.Module:
    """x · min(max(x + 3, 0), 6) / 6: "Searching for MobileNetV3" (Howard et al., ICCV 2019),
    section 5.2."""
    return nn.Hardswish(inplace=True)


class Swish(nn.Module):
    """x · sigmoid(βx) with a learned β, 1 at the start: AGLU with λ = 1 and κ = β.

    "Searching for Activation Functions" (Ramachandran, Zoph and Le, 2017), section 4.

    Args:
        num_channels: None for one β, of shape (1,); or the number of channels, for one a channel,
            of shape (C,).
    """

    def __init__(self, num_channels: int | None = None):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(num_channels or 1))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x of shape (N, C, ...) or, with one β, any. Returns: the same shape."""
        beta = self.beta
        if len(beta) > 1:
            beta = beta.view([1, -1] + [1] * (x.dim() - 2))
        if torch.jit.is_scripting():
            return x * torch.sigmoid(beta * x)
        return evaluate_aglu(x, 1.0, beta)


def get_activation(
    activation: str | Callable[[int], nn.Module],
    num_channels: int,
    *,
    per_channel: bool = False,
    **aglu_args,
) -> nn.Module:
    """Build an activation.

    Args:
        activation: a name in :data:`ACTIVATION_REGISTRY`: "aglu", "relu", "leaky_relu", "prelu",
            "elu", "gelu", "silu", "swish", "mish" or "hardswish"; or a callable that makes a module
            from the number of channels.
        num_channels: of the feature map that it is applied to.
        per_channel: whether AGLU, PReLU and Swish have their parameters per channel.
        aglu_args: ``lambda_range``, ``kappa_range`` and ``lambda_min`` of
            :class:`apa_det.activation.AGLU`; the others have no use for them.

    Raises:
        ValueError: an unknown name.
    """
    if callable(activation):
        return activation(num_channels)
    if activation not in ACTIVATION_REGISTRY:
        names = ", ".join(sorted(name for name, _ in ACTIVATION_REGISTRY))
        raise ValueError(f"Unknown activation {activation!r}: choose one of {names}.")
    build = ACTIVATION_REGISTRY.get(activation)
    return build(num_channels if per_channel else None, **aglu_args)


def activation_from_config(cfg: CfgNode, activation: str) -> Callable[[int], nn.Module]:
    """The callable for :func:`get_activation` that the keys under ``MODEL.APA`` describe.

    Args:
        cfg: a config with the keys of :func:`apa_det.add_apa_config`.
        activation: the name, from whichever key holds it.
    """
    return partial(
        get_activation,
        activation,
        per_channel=cfg.MODEL.APA.PER_CHANNEL,
        lambda_range=tuple(cfg.MODEL.APA.LAMBDA_RANGE),
        kappa_range=tuple(cfg.MODEL.APA.KAPPA_RANGE),
        lambda_min=cfg.MODEL.APA.LAMBDA_MIN,
    )
