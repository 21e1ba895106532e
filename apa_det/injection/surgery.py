"""APA in a model that somebody else has written, and its removal."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..activation import AGLU, APA
from .channels import Channels, ChannelsLastAGLU, ChannelsLastAPA, find_channels
from .kinds import KINDS, closest
from .places import (
    Place,
    find_places,
    has_hooks,
    injected_names,
    obstacle,
    put,
    put_back,
    set_attribute,
)

__all__ = ["inject", "injected", "restore"]

logger = logging.getLogger(__name__)

Type = str | type[nn.Module]


def inject(
    model: nn.Module,
    names: str | Sequence[str] = "*",
    *,
    types: Type | Sequence[Type] | None = None,
    like: Literal["replaced"] | None = None,
    parameters: Literal["shared", "per_channel", "tied"] = "shared",
    lambda_range: tuple[float, float] = (0.0, 1.0),
    kappa_range: tuple[float, float] = (1.0, 1.3),
    gate_lambda_range: tuple[float, float] = (0.0, 1.0),
    gate_kappa_range: tuple[float, float] = (-1.0, 0.0),
    lambda_min: float = 1e-4,
    example: object = None,
) -> dict[str, nn.Module | Callable]:
    """Put AGLU in the place of activations of a model, and APA in that of sigmoid gates.

    They may be modules, attributes such as ``Conv2d.activation``, or calls such as ``F.relu(x)`` in
    a ``forward``. Each place gets a module of its own. Its name is that of what was there; for a
    call it is ``act``, or ``act1``, ``act2``, … where a class has several, in their order, which
    are the names that :func:`apa_det.modeling.make_apa_resnet` gives in detectron2's ResNets. Where
    a class calls one module at several places, as torchvision's ResNets call ``relu``, these are
    ``relu1``, ``relu2``, …. A call that runs several times, in a loop over layers or levels, is one
    place.

    All other parameters keep their names. The new λ and κ train, in frozen layers too, and have the
    device and the dtype of their neighbours. Hooks of what is replaced stay. What worked in place
    leaves its input as it is from now on.

    Inject before the optimizer and DistributedDataParallel are made.

    Args:
        model: the model, changed in place.
        names: patterns of the names of places, with ``*``, ``?`` and ``[…]``: "*",
            "backbone.*", ["*.res[345].*", "roi_heads.box_head.*"]. After an exclamation mark, of
            places to leave out: "!roi_heads.mask_head.*".
        types: the activations to replace, as names ("relu", "leaky_relu", "relu6", "elu", "celu",
            "selu", "gelu", "silu", "mish", "hardswish"; for the gates "sigmoid", modules only, and
            "hardsigmoid") or classes of modules. None: all of these names. Calls of
            ``torch.sigmoid``, which are scores more often than gates, are replaced where
            "functional_sigmoid" is named.
        like: "replaced" starts λ and κ where they come closest to what they replace, so that a
            trained model goes on working: SiLU and sigmoid exactly, ReLU within 0.001 of each
            value, GELU and Mish within 0.021, hard sigmoid within 0.06. Nothing is close to ReLU6,
            ELU, CELU, SELU, hard swish (λ = 1 and κ = 1.05 are 0.13 apart) and leaky ReLU of slopes
            over 0.01. None: from the ranges. ReLU's κ of 300 hardly moves: gradients of κ fall with
            κ³, those of λ with κ². ``lambda_range=(1, 1), kappa_range=(20, 20)`` is within 0.014 of
            ReLU, and learns.
        parameters: "shared": one λ and one κ for each place. "per_channel": one pair for each
            channel. "tied": one pair for all activations, and one for all gates.
        lambda_range, kappa_range: the uniform distributions that λ and κ of AGLU start from.
        gate_lambda_range, gate_kappa_range: those of APA.
        lambda_min: λ is clamped to at least this.
        example: for "per_channel": an input of the model, or a tuple of several, to see the
            channels in. It runs once, without gradients and in evaluation mode.

    Returns:
        What was replaced: the name of each place, and the module or the function that was there.

    Raises:
        ValueError: a pattern matches nothing, an unknown type, a place that cannot take a module,
            nothing comes close to what is replaced, or the channels of a place are not known; the
            model is unchanged.
    """
    if like not in (None, "replaced"):
        raise ValueError(f'like is "replaced" or None, not {like!r}.')
    if parameters not in ("shared", "per_channel", "tied"):
        raise ValueError(f"parameters is shared, per_channel or tied, not {parameters!r}.")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError("Inject before DistributedDataParallel: it would not train λ and κ.")
    places = _select(model, [names] if isinstance(names, str) else names, types)
    if like == "replaced":
        ranges = [_start(*closest(place.kind, place.function, place.name)) for place in places]
    else:
        choices = (lambda_range, kappa_range), (gate_lambda_range, gate_kappa_range)
        ranges = [choices[place.is_gate] for place in places]
    channels: list[Channels | None] = [None] * len(places)
    if parameters == "per_channel":
        channels = find_channels(model, places, example)
    modules = [
        _build(place.is_gate, its_channels, *its_ranges, lambda_min)
        for place, its_channels, its_ranges in zip(places, channels, ranges, strict=True)
    ]
    if parameters == "tied":
        modules = _tied(places, modules)
    floats = (p for p in model.parameters() if p.is_floating_point())
    put(places, modules, next(floats, torch.empty(0)))
    _leave_fast_paths(model)
    kinds = Counter(place.kind or type(place.old).__name__ for place in places)
    logger.info(
        "AGLU and APA in %d places of %s: %s",
        len(places),
        type(model).__name__,
        ", ".join(f"{n} {kind}" for kind, n in kinds.items()),
    )
    return {place.name: place.old for place in places}


def injected(model: nn.Module, *args, **kwargs) -> nn.Module:
    """The model itself, after :func:`inject`: for LazyConfig, ``L(injected)(model=…, like=…)``."""
    inject(model, *args, **kwargs)
    return model


def restore(model: nn.Module) -> None:
    """Undo every :func:`inject`: outputs and state dict are those from before.

    Raises:
        ValueError: nothing is injected.
    """
    owners = [module for module in model.modules() if injected_names(module)]
    if not owners:
        raise ValueError(f"Nothing is injected in the {type(model).__name__}.")
    for owner in owners:
        put_back(owner, injected_names(owner))


def _select(
    model: nn.Module, names: Sequence[str], types: Type | Sequence[Type] | None
) -> list[Place]:
    """The places of these names and types, which all can take a module."""
    kinds, classes = _kinds_and_classes(types)
    places = [
        place
        for place in find_places(model, classes)
        if place.kind in kinds or isinstance(place.old, classes)
    ]
    left_out = [name for name in names if name.startswith("!")]
    wanted = [name for name in names if name not in left_out] or ["*"]
    chosen = set()
    for pattern in wanted + left_out:
        found = {p.name for p in places if fnmatchcase(p.name, pattern.removeprefix("!"))}
        if not found:
            few = ", ".join(place.name for place in places[:3])
            raise ValueError(
                f"No activation of the {type(model).__name__} that is of these types has a name "
                f"like {pattern!r}" + (f": there are {few}, …" if few else ", nor any other.")
            )
        chosen = chosen - found if pattern in left_out else chosen | found
    if not chosen:
        raise ValueError(f"names leave out every activation: {', '.join(names)}.")
    places = [place for place in places if place.name in chosen]
    for place in places:
        if reason := obstacle(place):
            raise ValueError(
                f'{place.name} cannot be a module: {reason}. "!{place.name}" among the names '
                "leaves it out."
            )
    return places


def _kinds_and_classes(types: Type | Sequence[Type] | None) -> tuple[set[str], tuple[type, ...]]:
    if types is None:
        return {name for name, kind in KINDS.items() if kind.default}, ()
    types = [types] if isinstance(types, str | type) else types
    kinds = {t for t in types if isinstance(t, str)}
    if unknown := kinds - KINDS.keys():
        raise ValueError(f"types takes {', '.join(KINDS)} or classes, not {', '.join(unknown)}.")
    classes = tuple(t for t in types if not isinstance(t, str))
    return kinds | {name for name, kind in KINDS.items() if kind.module in classes}, classes


def _start(lambda_: float, kappa: float) -> tuple[tuple[float, float], tuple[float, float]]:
    return (lambda_, lambda_), (kappa, kappa)


def _build(is_gate: bool, channels: Channels | None, lambda_range, kappa_range, lambda_min) -> APA:
    if channels is not None and channels.last:
        cls = ChannelsLastAPA if is_gate else ChannelsLastAGLU
    else:
        cls = APA if is_gate else AGLU
    return cls(
        channels and channels.count,
        lambda_range=tuple(lambda_range),
        kappa_range=tuple(kappa_range),
        lambda_min=lambda_min,
    )


def _tied(places: Sequence[Place], modules: Sequence[APA]) -> list[APA]:
    """The same module for all activations, and another for all gates."""
    first: dict[bool, APA] = {}
    for place, module in zip(places, modules, strict=True):
        if has_hooks(place.old):
            raise ValueError(
                f"{place.name} has hooks, which a module that all places share would call at each "
                'of them: remove them, or give parameters="shared".'
            )
        one = first.setdefault(place.is_gate, module)
        if (one.lambda_range, one.kappa_range) != (module.lambda_range, module.kappa_range):
            raise ValueError(
                f"{place.name} is another activation than {places[0].name}: one λ and κ cannot "
                'start like both. Choose one by types, or leave like="replaced" out.'
            )
    return [first[place.is_gate] for place in places]


def _leave_fast_paths(model: nn.Module) -> None:
    """Evaluate injected layers of torch's transformers in Python, as they are trained.

    Its own kernels compute the activation that a layer was made with.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and "activation" in injected_names(
            module
        ):
            set_attribute(module, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoder):
            if any(injected_names(layer) for layer in module.layers):
                set_attribute(module, "use_nested_tensor", False)
