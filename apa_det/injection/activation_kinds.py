"""The activations that APA and AGLU can replace, and the λ and κ that approximate them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activation import aglu, apa
from ..errors import UserError

Function = Callable[[Tensor], Tensor]

RELU_KAPPA = 300.0


@dataclass(frozen=True)
class Kind:
    """A kind of activation.

    Attributes:
        module: its class in torch.nn.
        functions: its functions in torch.
        closest: the closest λ and κ, and an upper bound of the error for |z| <= 10. For GELU these
            are the values of its usual approximation, for the others those with the least error.
            None: no close values exist.
        too_far: the same, if these values do not keep pretrained weights usable. With those of hard
            swish, the outputs of a MobileNetV3 change by more than their norm.
        gate: if True, APA replaces it, otherwise AGLU.
        default: if True, it is replaced if no types are given.
    """

    module: type[nn.Module] | None
    functions: tuple[Callable, ...]
    closest: tuple[float, float, float] | None = None
    too_far: tuple[float, float, float] | None = None
    gate: bool = False
    default: bool = True


KINDS: dict[str, Kind] = {
    "relu": Kind(
        nn.ReLU, (F.relu, F.relu_, torch.relu, torch.relu_), (1.0, RELU_KAPPA, 0.279 / RELU_KAPPA)
    ),
    "leaky_relu": Kind(nn.LeakyReLU, (F.leaky_relu, F.leaky_relu_), (1.0, RELU_KAPPA, 0.101)),
    "relu6": Kind(nn.ReLU6, (F.relu6,), too_far=(0.873, 0.1335, 1.893)),
    "elu": Kind(nn.ELU, (F.elu, F.elu_)),
    "celu": Kind(nn.CELU, (F.celu, F.celu_, torch.celu, torch.celu_)),
    "selu": Kind(nn.SELU, (F.selu, F.selu_, torch.selu, torch.selu_)),
    "gelu": Kind(nn.GELU, (F.gelu,), (1.0, 1.702, 0.021)),
    "silu": Kind(nn.SiLU, (F.silu,), (1.0, 1.0, 1e-5)),
    "mish": Kind(nn.Mish, (F.mish,), (2.2025, 1.8958, 0.017)),
    "hardswish": Kind(nn.Hardswish, (F.hardswish,), too_far=(1.0, 1.0486, 0.124)),
    "sigmoid": Kind(nn.Sigmoid, (), (1.0, 1.0, 1e-6), gate=True),
    # Sigmoids called as functions usually compute scores, not gates.
    "functional_sigmoid": Kind(
        None, (F.sigmoid, torch.sigmoid, torch.sigmoid_), (1.0, 1.0, 1e-6), gate=True, default=False
    ),
    "hardsigmoid": Kind(nn.Hardsigmoid, (F.hardsigmoid,), (1.0, 0.9413, 0.057), gate=True),
}

_KIND_OF_FUNCTION = {f: name for name, kind in KINDS.items() for f in kind.functions}
_KIND_OF_CLASS = {
    **{name.replace("_", ""): name for name, kind in KINDS.items() if kind.module},
    "swish": "silu",
    "memoryefficientswish": "silu",
    "gelutanh": "gelu",
    "quickgelu": "gelu",
    "hswish": "hardswish",
    "hsigmoid": "hardsigmoid",
}


def kind_of_function(function: object) -> str | None:
    """Return the name in ``KINDS`` of a torch function or a ``partial`` of one, else None."""
    if isinstance(function, partial):
        function = function.func
    if isinstance(function, FunctionType | BuiltinFunctionType):
        return _KIND_OF_FUNCTION.get(function)
    return None


def kind_of_module(module: nn.Module | None) -> str | None:
    """Return the name in ``KINDS`` of a module without parameters, by its class name, else None.

    This covers the classes of torch, of timm (``GELUTanh``, ``SwishMe``) and of many other projects
    (``h_swish``). :func:`closest_parameters` verifies what they compute.
    """
    if module is None or any(True for _ in module.parameters()):
        return None
    name = type(module).__name__.lower().replace("_", "")
    return _KIND_OF_CLASS.get(re.sub("(jit)?(me)?$", "", name))


def closest_parameters(
    kind: str | None, function: Function | None, name: str
) -> tuple[float, float]:
    """Return the λ and κ with which APA or AGLU approximates an activation best.

    Verifies them on ``function``; ``name`` is that of the location, for the error message.

    Raises:
        UserError: if no close values exist, or the function is None (unknown).
    """
    if function is not None and kind is not None and KINDS[kind].closest is not None:
        lambda_, kappa, distance = KINDS[kind].closest
        z = torch.linspace(-10, 10, 2001, device="cpu")
        ours = (apa if KINDS[kind].gate else aglu)(z, lambda_, kappa)
        with torch.no_grad():
            if (function(z.clone()) - ours).abs().max() <= distance:
                return lambda_, kappa
    described = function if isinstance(function, nn.Module) else kind
    closest = ""
    if kind is not None and KINDS[kind].too_far is not None:
        lambda_, kappa, distance = KINDS[kind].too_far
        closest = f" (the closest, λ = {lambda_:g} and κ = {kappa:g}, differ by up to {distance:g})"
    raise UserError(
        f'like="replaced": no λ and κ approximate {described} at {name}{closest}. Exclude it by '
        f'types or names ("!{name}"), or use like=None.'
    )
