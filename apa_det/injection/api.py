"""Injection of APA and AGLU into any model, and its removal."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..activation import AGLU, APA
from ..errors import UserError
from .activation_kinds import KINDS, closest_parameters
from .channels import Channels, ChannelsLastAGLU, ChannelsLastAPA, find_channels
from .locations import (
    Location,
    find_kept_calls,
    find_locations,
    find_obstacle,
    has_hooks,
    injected_names,
    insert_modules,
    restore_attributes,
    rewritten_methods,
    set_attribute,
    share_modules,
)

logger = logging.getLogger(__name__)

Type = str | type[nn.Module]


class Replaced(dict[str, nn.Module | Callable]):
    """The replaced module or function of each location, by name.

    Attributes:
        passed_over: activations that are not replaced, by name, and the reason: a forward pass does
            not use the attribute, or the source of a call cannot be rewritten.
        rewritten: the rewritten methods, by the name of their class.
    """

    def __init__(self, locations: Sequence[Location], passed_over: dict[str, str]):
        super().__init__({loc.name: loc.old for loc in locations})
        self.passed_over = passed_over
        self.rewritten: dict[str, tuple[str, ...]] = {}
        for owner in dict.fromkeys(loc.owner for loc in locations if loc.call is not None):
            cls, methods = rewritten_methods(owner)
            names = dict.fromkeys(self.rewritten.get(cls, ()) + methods)
            self.rewritten[cls] = tuple(names)


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
) -> Replaced:
    """Replace activations of a model by AGLU, and sigmoid gates by APA, in place.

    Replaces modules, attributes that are functions (``Conv2d.activation``) and calls in methods
    (``F.relu(x)`` in ``forward``). Each location gets a new module with the same name. The module
    for a call is named ``act``, or ``act1``, ``act2``, … in order of execution if a class has
    several calls. In detectron2's ResNets these are the names of
    :func:`apa_det.modeling.make_apa_resnet`. If a class calls one module several times, as
    torchvision's ResNets do with ``relu``, each call gets a new module: ``relu1``, ``relu2``, …. A
    call in a loop over layers or levels is one location. A module that several attributes hold
    stays one module, with one λ and κ.

    Only what a forward pass uses is replaced: by their source, do the methods of the module, or
    those of another module, use the attribute after construction? If the source is unknown, an
    attribute counts as used. The result lists what was passed over.

    All other parameters keep their names. The new λ and κ are trainable, in frozen layers too, and
    have the device and dtype of the surrounding parameters. Hooks are kept. Replaced inplace
    activations no longer modify their input.

    Call it before creating the optimizer and DistributedDataParallel.

    Args:
        model: the model; changed in place.
        names: name patterns with ``*``, ``?`` and ``[…]``, e.g. "*", "backbone.*" or
            ["*.res[345].*", "roi_heads.box_head.*"]. Patterns that start with "!" exclude names,
            e.g. "!roi_heads.mask_head.*".
        types: activations to replace: names ("relu", "leaky_relu", "relu6", "elu", "celu", "selu",
            "gelu", "silu", "mish", "hardswish"; for gates "sigmoid" (modules only) and
            "hardsigmoid") or module classes. None: all of these names. Calls of ``torch.sigmoid``
            usually compute scores, not gates; add "functional_sigmoid" to replace them.
        like: "replaced" initializes λ and κ such that they approximate the replaced activation, so
            that pretrained weights remain usable. SiLU and sigmoid are exact; for |z| <= 10, the
            largest error is 0.001 for ReLU, 0.021 for GELU and Mish, 0.06 for hard sigmoid and
            0.101 for leaky ReLU. No approximation is close enough for ReLU6 (1.89 at best), hard
            swish (0.124 at best, with λ = 1 and κ = 1.0486), ELU (0.21), CELU, SELU (0.51) and
            leaky ReLU with slopes above 0.01. None: initialize from the ranges. The κ = 300 of ReLU
            hardly trains, since gradients decrease with κ³ for κ and κ² for λ;
            ``lambda_range=(1, 1), kappa_range=(20, 20)`` is within 0.014 of ReLU and trains.
        parameters: "shared": one λ and κ per location. "per_channel": one λ and κ per channel.
            "tied": one λ and κ for all activations, and one for all gates.
        lambda_range, kappa_range: (low, high) of the uniform initial distributions of AGLU.
        gate_lambda_range, gate_kappa_range: (low, high) of those of APA.
        lambda_min: lower clamp of λ.
        example: required for "per_channel": an input of the model, or a tuple of inputs. The model
            runs once on it, in evaluation mode without gradients, to find the channels.

    Returns:
        The replaced module or function of each location, by name; with the attributes
        ``passed_over`` and ``rewritten``, see :class:`Replaced`.

    Raises:
        UserError: if a pattern matches nothing, a type is unknown, a location cannot be replaced,
            no λ and κ approximate an activation, or the channels of a location are unknown. The
            model is then unchanged.
        ValueError: if the model contains DistributedDataParallel.
    """
    if like not in (None, "replaced"):
        raise UserError(f'like must be "replaced" or None; got {like!r}.')
    if parameters not in ("shared", "per_channel", "tied"):
        raise UserError(f"parameters must be one of shared, per_channel, tied; got {parameters!r}.")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError("Inject before DistributedDataParallel, which would not train λ and κ.")
    kinds, classes = _kinds_and_classes(types)
    locations, unused = _select(model, [names] if isinstance(names, str) else names, kinds, classes)
    if like == "replaced":
        ranges = [
            tuple((value, value) for value in closest_parameters(loc.kind, loc.function, loc.name))
            for loc in locations
        ]
    else:
        choices = (lambda_range, kappa_range), (gate_lambda_range, gate_kappa_range)
        ranges = [choices[loc.is_gate] for loc in locations]
    channels: list[Channels | None] = [None] * len(locations)
    if parameters == "per_channel":
        channels = find_channels(model, locations, example)
    modules = [
        _build(loc.is_gate, loc_channels, *loc_ranges, lambda_min)
        for loc, loc_channels, loc_ranges in zip(locations, channels, ranges, strict=True)
    ]
    modules = (
        _tie(locations, modules) if parameters == "tied" else share_modules(locations, modules)
    )
    floats = (p for p in model.parameters() if p.is_floating_point())
    insert_modules(locations, modules, next(floats, torch.empty(0)))
    _disable_fast_paths(model)
    passed_over = {loc.name: loc.unused for loc in unused} | find_kept_calls(model, kinds)
    replaced = Replaced(locations, passed_over)
    _log(model, locations, replaced)
    return replaced


def injected(model: nn.Module, *args, **kwargs) -> nn.Module:
    """Call :func:`inject` and return the model. For LazyConfig: ``L(injected)(model=…)``."""
    inject(model, *args, **kwargs)
    return model


def restore(model: nn.Module) -> None:
    """Undo all calls of :func:`inject`, restoring the outputs and the state dict.

    Raises:
        ValueError: if nothing is injected.
    """
    owners = [module for module in model.modules() if injected_names(module)]
    if not owners:
        raise ValueError(f"Nothing is injected in {type(model).__name__}.")
    for owner in owners:
        restore_attributes(owner, injected_names(owner))


def _select(
    model: nn.Module, names: Sequence[str], kinds: set[str], classes: tuple[type, ...]
) -> tuple[list[Location], list[Location]]:
    """Return the locations to replace and the unused ones, of these names and types.

    Raises:
        UserError: if one cannot be replaced.
    """
    found = find_locations(model, classes)
    candidates = [loc for loc in found if loc.kind in kinds or isinstance(loc.old, classes)]
    excluded = [name for name in names if name.startswith("!")]
    included = [name for name in names if name not in excluded] or ["*"]
    selected = set()
    for pattern in included + excluded:
        matched = {c.name for c in candidates if fnmatchcase(c.name, pattern.removeprefix("!"))}
        if not matched:
            some = ", ".join(loc.name for loc in candidates[:3])
            hint = f"Some that exist: {some}." if some else "There are none of these types."
            raise UserError(
                f"The pattern {pattern!r} matches no activation of these types in "
                f"{type(model).__name__}. {hint}"
            )
        selected = selected - matched if pattern in excluded else selected | matched
    if not selected:
        raise UserError(f"names excludes every activation: {', '.join(names)}.")
    chosen = [loc for loc in candidates if loc.name in selected]
    used = {id(loc.old) for loc in chosen if loc.unused is None and isinstance(loc.old, nn.Module)}
    locations = [loc for loc in chosen if loc.unused is None or id(loc.old) in used]
    unused = [loc for loc in chosen if loc not in locations]
    if not locations:
        reasons = "; ".join(f"{loc.name}: {loc.unused}" for loc in unused[:3])
        raise UserError(
            f"No forward pass of {type(model).__name__} uses a selected activation ({reasons})."
        )
    for loc in locations:
        if obstacle := find_obstacle(loc):
            raise UserError(
                f'Cannot replace {loc.name}: {obstacle}. Add "!{loc.name}" to names to exclude it.'
            )
    return locations, unused


def _kinds_and_classes(types: Type | Sequence[Type] | None) -> tuple[set[str], tuple[type, ...]]:
    if types is None:
        return {name for name, kind in KINDS.items() if kind.default}, ()
    types = [types] if isinstance(types, str | type) else types
    kinds = {t for t in types if isinstance(t, str)}
    if unknown := kinds - KINDS.keys():
        raise UserError(
            f"types must be module classes or among {', '.join(KINDS)}; got {', '.join(unknown)}."
        )
    classes = tuple(t for t in types if not isinstance(t, str))
    return kinds | {name for name, kind in KINDS.items() if kind.module in classes}, classes


def _log(model: nn.Module, locations: Sequence[Location], replaced: Replaced) -> None:
    kinds = Counter(loc.kind or type(loc.old).__name__ for loc in locations)
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    logger.info("Replaced %d activations of %s: %s", len(locations), type(model).__name__, counts)
    for cls, methods in replaced.rewritten.items():
        logger.info("Rewrote for instances of %s: %s", cls, ", ".join(methods))
    reasons = defaultdict(list)
    for name, reason in replaced.passed_over.items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        logger.warning("Passed over %s%s: %s", ", ".join(names[:3]), more, reason)


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


def _tie(locations: Sequence[Location], modules: Sequence[APA]) -> list[APA]:
    """Return the same module for all activations, and another for all gates."""
    first: dict[bool, APA] = {}
    for loc, module in zip(locations, modules, strict=True):
        if has_hooks(loc.old):
            raise UserError(
                f"{loc.name} has hooks, which the module shared by all locations would call for "
                'each of them. Remove the hooks, or use parameters="shared".'
            )
        tied = first.setdefault(loc.is_gate, module)
        if (tied.lambda_range, tied.kappa_range) != (module.lambda_range, module.kappa_range):
            raise UserError(
                f"One λ and κ cannot approximate both {locations[0].name} and {loc.name}: they are "
                "different activations. Select one kind by types, or use like=None."
            )
    return [first[loc.is_gate] for loc in locations]


def _disable_fast_paths(model: nn.Module) -> None:
    """Disable the fast path of torch's transformers, which computes the original activation."""
    for module in model.modules():
        names = injected_names(module)
        if isinstance(module, nn.TransformerEncoderLayer) and "activation" in names:
            set_attribute(module, "activation_relu_or_gelu", 0)
        elif isinstance(module, nn.TransformerEncoder):
            if any(injected_names(layer) for layer in module.layers):
                set_attribute(module, "use_nested_tensor", False)
