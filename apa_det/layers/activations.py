"""Activations by name."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from torch import nn

from ..activation import AGLU

__all__ = ["get_activation", "activation_from_config"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "aglu": lambda channels, **aglu_args: AGLU(channels, **aglu_args),
    "prelu": lambda channels, **_: nn.PReLU(channels or 1),
    "relu": lambda *_, **__: nn.ReLU(inplace=True),
    "silu": lambda *_, **__: nn.SiLU(inplace=True),
    "gelu": lambda *_, **__: nn.GELU(),
    "mish": lambda *_, **__: nn.Mish(inplace=True),
    "leaky_relu": lambda *_, **__: nn.LeakyReLU(inplace=True),
}


def get_activation(
    activation: str | Callable[[int], nn.Module],
    num_channels: int,
    *,
    per_channel: bool = False,
    **aglu_args,
) -> nn.Module:
    """Build an activation.

    Args:
        activation: "aglu", "relu", "silu", "gelu", "mish", "leaky_relu" or "prelu"; or a callable
            that makes a module from the number of channels.
        num_channels: of the feature map that it is applied to.
        per_channel: whether AGLU and PReLU have their parameters per channel.
        aglu_args: ``lambda_range``, ``kappa_range`` and ``lambda_min`` of
            :class:`apa_det.activation.AGLU`; the others have no use for them.

    Raises:
        ValueError: an unknown name.
    """
    if callable(activation):
        return activation(num_channels)
    if activation not in _BUILDERS:
        raise ValueError(
            f"Unknown activation {activation!r}: choose one of {', '.join(sorted(_BUILDERS))}."
        )
    return _BUILDERS[activation](num_channels if per_channel else None, **aglu_args)


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
