"""The places of activations in a model, and what it takes to put modules there."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..activation import APA
from .kinds import KINDS, kind_of_function, kind_of_module
from .rewriting.calls import Call, calls_of, iterates_over_itself
from .rewriting.source import Chosen, calling_modules

__all__ = [
    "Place",
    "find_places",
    "has_hooks",
    "injected_names",
    "obstacle",
    "put",
    "put_back",
    "set_attribute",
]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclass(frozen=True)
class Place:
    """A place of an activation: an attribute of a module, or a call in its methods.

    Attributes:
        name: in the model, as of a module.
        owner: the module it belongs to.
        attribute: the last part of the name.
        kind: its name in ``KINDS``; None for another class of modules.
        old: what is there.
        function: what that computes; None: it is not known, as a call has options that are no
            constants.
        call: for a call.
    """

    name: str
    owner: nn.Module
    attribute: str
    kind: str | None
    old: nn.Module | Callable
    function: Callable | None
    call: Call | None = None

    @property
    def is_gate(self) -> bool:
        return self.kind is not None and KINDS[self.kind].gate


def find_places(model: nn.Module, classes: tuple[type, ...] = ()) -> Iterator[Place]:
    """All places in a model, in the order of the modules they belong to.

    Args:
        model: the model.
        classes: those of modules that are activations too.
    """
    for prefix, owner in model.named_modules():
        if isinstance(owner, (APA, torch.jit.ScriptModule, *classes)) or kind_of_module(owner):
            continue
        dot = f"{prefix}." if prefix else ""
        calls = _calls_left(owner)
        in_calls = {call.attribute for call in calls}
        for name, child in owner._modules.items():
            kind = kind_of_module(child)
            if name not in in_calls and (kind is not None or isinstance(child, classes)):
                yield Place(dot + name, owner, name, kind, child, child)
        for name, value in vars(owner).items():
            if kind := kind_of_function(value):
                yield Place(dot + name, owner, name, kind, value, value)
        for call in calls:
            name = call.name if not hasattr(owner, call.name) else f"apa_{call.name}"
            if call.attribute is None:
                yield Place(dot + name, owner, name, call.kind, call.called, call.function, call)
            else:
                old = owner._modules[call.attribute]
                yield Place(dot + name, owner, name, kind_of_module(old), old, old, call)


def _calls_left(owner: nn.Module) -> list[Call]:
    """The calls of activations in the class of a module, without those already replaced."""
    if "forward" in vars(owner):  # so it is not that of the class
        return []
    done = {(method, index) for method, index, _ in _calls_done(owner)}
    return [
        call
        for call in calls_of(_original_class(owner))
        if done.isdisjoint(call.sites)
        and (call.attribute is None or kind_of_module(owner._modules.get(call.attribute)))
    ]


def obstacle(place: Place) -> str | None:
    """Why a place cannot take a module; None: it can."""
    owner = place.owner
    kind = type(owner).__name__
    if place.call is not None and isinstance(owner, fx.GraphModule):
        return f"the {kind} is a traced graph. Inject before the model is traced"
    if place.call is not None and iterates_over_itself(_original_class(owner)):
        return f"the {kind} goes through its children, and would take it for one of them"
    for name, value in vars(owner).items():
        if name in ("_modules", "_apa_replaced") or not isinstance(value, list | tuple | dict):
            continue
        held = value.values() if isinstance(value, dict) else value
        if isinstance(place.old, nn.Module) and any(item is place.old for item in held):
            return f"the {kind} also holds what is there in its {name}, and may call that"
    return None


def has_hooks(module: object) -> bool:
    """Whether something is called where a module runs."""
    return isinstance(module, nn.Module) and any(vars(module)[name] for name in _HOOKS)


def put(places: Sequence[Place], modules: Iterable[nn.Module], like: Tensor) -> None:
    """Put a module in each place, and keep in its owner what was there.

    A module takes on the hooks of the one that was there, its owner's mode, and the device and the
    dtype of the owner's parameters, or those of ``like`` if it has none.
    """
    calls = defaultdict(list)
    for place in places:
        if place.call is not None:
            calls[place.owner] += [(*site, place.attribute) for site in place.call.sites]
    classes = {o: _class_with(o, [*_calls_done(o), *its_calls]) for o, its_calls in calls.items()}
    for place, module in zip(places, modules, strict=True):
        owner, name = place.owner, place.attribute
        replaced = vars(owner).setdefault("_apa_replaced", {})
        if place.call is None:
            replaced[name] = place.old
            vars(owner).pop(name, None)
        else:
            replaced[name] = None  # the class knows
        if has_hooks(place.old):  # shared, so that what registered them can remove them
            vars(module).update({hooks: vars(place.old)[hooks] for hooks in _HOOKS})
        floats = (p for p in owner.parameters() if p.is_floating_point())
        module.to(next(floats, like)).train(owner.training)
        owner._modules[name] = module
    for owner, cls in classes.items():
        owner.__class__ = cls


def set_attribute(owner: nn.Module, name: str, value: object) -> None:
    """Set an attribute of a module until :func:`put_back` is called for its name."""
    vars(owner).setdefault("_apa_replaced", {}).setdefault(name, vars(owner)[name])
    vars(owner)[name] = value


def put_back(owner: nn.Module, names: Iterable[str]) -> None:
    """Put back into a module what was in the places of these names, of :func:`injected_names`."""
    names = [*names]
    replaced = vars(owner)["_apa_replaced"]
    for name in names:
        old = replaced.pop(name)
        if isinstance(old, nn.Module):
            new = owner._modules[name]
            like = next(new.parameters(), None)
            owner._modules[name] = (old if like is None else old.to(like)).train(new.training)
            continue
        owner._modules.pop(name, None)
        if old is not None:
            vars(owner)[name] = old
    if not replaced:
        del vars(owner)["_apa_replaced"]
    left = [call for call in _calls_done(owner) if call[-1] not in names]
    owner.__class__ = _class_with(owner, left)


def injected_names(owner: nn.Module) -> list[str]:
    """The attributes of a module, and not of its children, that were replaced."""
    return [*vars(owner).get("_apa_replaced", ())]


def _original_class(owner: nn.Module) -> type[nn.Module]:
    return getattr(type(owner), "_apa_original", type(owner))


def _calls_done(owner: nn.Module) -> Chosen:
    return getattr(type(owner), "_apa_calls", ())


def _class_with(owner: nn.Module, calls: list[tuple[str, int, str]]) -> type[nn.Module]:
    original = _original_class(owner)
    return calling_modules(original, tuple(sorted(calls))) if calls else original
