"""Registry of activations."""

from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..activation import AGLU
from ..activation import aglu as evaluate_aglu
from ..errors import UserError

Activation = str | Callable[[int], nn.Module]

ACTIVATION_REGISTRY = Registry("ACTIVATION")
ACTIVATION_REGISTRY.__doc__ = """
Registry of activations, for ``MODEL.APA.ACTIVATION`` and similar config keys.

Entries are callables ``(num_channels: int | None, **aglu_args) -> nn.Module``. ``num_channels`` is
given if learned parameters are per channel, else None. ``aglu_args`` are the arguments of
:class:`apa_det.activation.AGLU`; other activations ignore them.
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
    """max(x, 0) + a min(x, 0), a learned, initially 0.25: "Delving Deep into Rectifiers" (He et
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
    """x · sigmoid(βx) with a learned β, initially 1: AGLU with λ = 1 and κ = β.

    "Searching for Activation Functions" (Ramachandran, Zoph and Le, 2017), section 4.

    Args:
        num_channels: None for one β; C for one β per channel, of shape (C,).
    """

    def __init__(self, num_channels: int | None = None):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(num_channels or 1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x of shape (N, C, ...) if β is per channel, otherwise of any shape."""
        beta = self.beta.view([1, -1] + [1] * (x.dim() - 2)) if len(self.beta) > 1 else self.beta
        if torch.jit.is_scripting():
            return x * torch.sigmoid(beta * x)
        return evaluate_aglu(x, 1.0, beta)


def get_activation(
    activation: Activation, num_channels: int, *, per_channel: bool = False, **aglu_args
) -> nn.Module:
    """Build an activation.

    Args:
        activation: a name in :data:`ACTIVATION_REGISTRY` ("aglu", "relu", "leaky_relu", "prelu",
            "elu", "gelu", "silu", "swish", "mish" or "hardswish"), or a callable that builds a
            module for a number of channels.
        num_channels: number of channels of its input.
        per_channel: if True, the parameters of AGLU, PReLU and Swish are per channel.
        aglu_args: ``lambda_range``, ``kappa_range`` and ``lambda_min`` of
            :class:`apa_det.activation.AGLU`.

    Raises:
        UserError: if the name is unknown.
    """
    if callable(activation):
        return activation(num_channels)
    if activation not in ACTIVATION_REGISTRY:
        names = ", ".join(sorted(name for name, _ in ACTIVATION_REGISTRY))
        raise UserError(f"Unknown activation {activation!r}; expected one of {names}.")
    channels = num_channels if per_channel else None
    return ACTIVATION_REGISTRY.get(activation)(channels, **aglu_args)


def activation_from_config(cfg: CfgNode, activation: str) -> Callable[[int], nn.Module]:
    """Return :func:`get_activation` of a name with the settings of ``MODEL.APA`` bound."""
    apa = cfg.MODEL.APA
    return partial(
        get_activation,
        activation,
        per_channel=apa.PER_CHANNEL,
        lambda_range=tuple(apa.LAMBDA_RANGE),
        kappa_range=tuple(apa.KAPPA_RANGE),
        lambda_min=apa.LAMBDA_MIN,
    )
