"""Locations of activations in a model, and how modules are inserted there and removed."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..activation import APA
from .activation_kinds import KINDS, kind_of_function, kind_of_module
from .rewriting.activation_calls import ActivationCall, find_calls, iterates_over_children
from .rewriting.subclasses import Replacements, subclass_with_modules

_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


@dataclass(frozen=True)
class Location:
    """Location of an activation: an attribute of a module, or a call in its methods.

    Attributes:
        name: qualified name in the model, as for a submodule.
        owner: the module with the attribute or the call.
        attribute: last part of the name.
        kind: name of the activation in ``KINDS``; None for other classes.
        old: the replaced module or function.
        function: the function that it computes; None if unknown, because the options of a call are
            not constants.
        call: the call; None for an attribute.
    """

    name: str
    owner: nn.Module
    attribute: str
    kind: str | None
    old: nn.Module | Callable
    function: Callable | None
    call: ActivationCall | None = None

    @property
    def is_gate(self) -> bool:
        return self.kind is not None and KINDS[self.kind].gate


def find_locations(model: nn.Module, classes: tuple[type, ...] = ()) -> Iterator[Location]:
    """Yield all locations in a model, in the order of its modules.

    ``classes`` are further classes of activation modules.
    """
    for prefix, owner in model.named_modules():
        if isinstance(owner, (APA, torch.jit.ScriptModule, *classes)) or kind_of_module(owner):
            continue
        dot = f"{prefix}." if prefix else ""
        calls = _remaining_calls(owner)
        in_calls = {call.attribute for call in calls}
        for name, child in owner._modules.items():
            kind = kind_of_module(child)
            if name not in in_calls and (kind is not None or isinstance(child, classes)):
                yield Location(dot + name, owner, name, kind, child, child)
        for name, value in vars(owner).items():
            if kind := kind_of_function(value):
                yield Location(dot + name, owner, name, kind, value, value)
        for call in calls:
            name = call.name if not hasattr(owner, call.name) else f"apa_{call.name}"
            if call.attribute is None:
                yield Location(dot + name, owner, name, call.kind, call.called, call.function, call)
            else:
                old = owner._modules[call.attribute]
                yield Location(dot + name, owner, name, kind_of_module(old), old, old, call)


def _remaining_calls(owner: nn.Module) -> list[ActivationCall]:
    """Return the activation calls in the class of a module that are not replaced yet."""
    if "forward" in vars(owner):  # overrides that of the class
        return []
    replaced = {(method, index) for method, index, _ in _replaced_calls(owner)}
    return [
        call
        for call in find_calls(_original_class(owner))
        if replaced.isdisjoint(call.sites)
        and (call.attribute is None or kind_of_module(owner._modules.get(call.attribute)))
    ]


def find_obstacle(location: Location) -> str | None:
    """Return why a location cannot be replaced by a module; None if it can."""
    owner = location.owner
    class_name = type(owner).__name__
    if location.call is not None and isinstance(owner, fx.GraphModule):
        return f"{class_name} is a traced graph; inject before tracing"
    if location.call is not None and iterates_over_children(_original_class(owner)):
        return f"{class_name} iterates over its children, which would include the new module"
    for name, value in vars(owner).items():
        if name in ("_modules", "_apa_replaced") or not isinstance(value, list | tuple | dict):
            continue
        items = value.values() if isinstance(value, dict) else value
        if isinstance(location.old, nn.Module) and any(item is location.old for item in items):
            return f"{class_name} also has this module in its attribute {name}, and may call it"
    return None


def has_hooks(module: object) -> bool:
    """Return whether a module has forward or backward hooks."""
    return isinstance(module, nn.Module) and any(vars(module)[name] for name in _HOOKS)


def insert_modules(
    locations: Sequence[Location], modules: Iterable[nn.Module], like: Tensor
) -> None:
    """Insert a module at each location, and save what it replaces in the owner.

    Each module gets the hooks of the replaced module, the training mode of its owner, and the
    device and dtype of the owner's parameters, or those of ``like`` if the owner has none.
    """
    calls = defaultdict(list)
    for loc in locations:
        if loc.call is not None:
            calls[loc.owner] += [(*site, loc.attribute) for site in loc.call.sites]
    classes = {
        owner: _class_with(owner, [*_replaced_calls(owner), *new_calls])
        for owner, new_calls in calls.items()
    }
    for loc, module in zip(locations, modules, strict=True):
        owner, name = loc.owner, loc.attribute
        replaced = vars(owner).setdefault("_apa_replaced", {})
        if loc.call is None:
            replaced[name] = loc.old
            vars(owner).pop(name, None)
        else:
            replaced[name] = None  # the original class has the call
        if has_hooks(loc.old):  # shared, so that their handles can still remove them
            vars(module).update({hooks: vars(loc.old)[hooks] for hooks in _HOOKS})
        floats = (p for p in owner.parameters() if p.is_floating_point())
        module.to(next(floats, like)).train(owner.training)
        owner._modules[name] = module
    for owner, cls in classes.items():
        owner.__class__ = cls


def set_attribute(owner: nn.Module, name: str, value: object) -> None:
    """Set an attribute of a module; :func:`restore_attributes` restores the old value."""
    vars(owner).setdefault("_apa_replaced", {}).setdefault(name, vars(owner)[name])
    vars(owner)[name] = value


def restore_attributes(owner: nn.Module, names: Iterable[str]) -> None:
    """Restore attributes and calls of a module, given their names of :func:`injected_names`."""
    names, replaced = [*names], vars(owner)["_apa_replaced"]
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
    remaining = [call for call in _replaced_calls(owner) if call[-1] not in names]
    owner.__class__ = _class_with(owner, remaining)


def injected_names(owner: nn.Module) -> list[str]:
    """Return the names of the replaced attributes of a module, without those of its children."""
    return [*vars(owner).get("_apa_replaced", ())]


def _original_class(owner: nn.Module) -> type[nn.Module]:
    return getattr(type(owner), "_apa_original", type(owner))


def _replaced_calls(owner: nn.Module) -> Replacements:
    return getattr(type(owner), "_apa_calls", ())


def _class_with(owner: nn.Module, calls: list[tuple[str, int, str]]) -> type[nn.Module]:
    original = _original_class(owner)
    return subclass_with_modules(original, tuple(sorted(calls))) if calls else original
