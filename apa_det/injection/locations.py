"""Locations of activations in a model, and how modules are inserted there and removed."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from ..activation import APA
from .activation_kinds import KINDS, kind_of_function, kind_of_module
from .references import find_references
from .rewriting.activation_calls import ActivationCall, find_calls, iterates_over_children
from .rewriting.reach import called_activations, reach_methods
from .rewriting.subclasses import Replacements, find_copying_method, subclass_with_modules

Module = TypeVar("Module", bound=nn.Module)

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
        unused: why a forward pass does not use the attribute; None if it does.
    """

    name: str
    owner: nn.Module
    attribute: str
    kind: str | None
    old: nn.Module | Callable
    function: Callable | None
    call: ActivationCall | None = None
    unused: str | None = None

    @property
    def is_gate(self) -> bool:
        return self.kind is not None and KINDS[self.kind].gate


def find_locations(model: nn.Module, classes: tuple[type, ...] = ()) -> Iterator[Location]:
    """Yield all locations in a model, in the order of its modules.

    ``classes`` are further classes of activation modules. The calls of a module that several
    attributes hold are one location, since it has to stay one module.
    """
    attributes = Counter(id(child) for m in model.modules() for child in m._modules.values())
    shared = {identity for identity, number in attributes.items() if number > 1}
    usage = _Usage(model)
    for prefix, owner in model.named_modules():
        if isinstance(owner, (APA, torch.jit.ScriptModule, *classes)) or kind_of_module(owner):
            continue
        dot = f"{prefix}." if prefix else ""
        calls = [
            call
            for call in _remaining_calls(owner)
            if call.attribute is None or id(owner._modules[call.attribute]) not in shared
        ]
        in_calls = {call.attribute for call in calls} | _attributes_in_replaced_calls(owner)
        for name, child in owner._modules.items():
            kind = kind_of_module(child)
            if name not in in_calls and (kind is not None or isinstance(child, classes)):
                unused = usage.find_reason(owner, name)
                yield Location(dot + name, owner, name, kind, child, child, unused=unused)
        for name, value in vars(owner).items():
            if kind := kind_of_function(value):
                unused = usage.find_reason(owner, name)
                yield Location(dot + name, owner, name, kind, value, value, unused=unused)
        for call in calls:
            name = call.name if not hasattr(owner, call.name) else f"apa_{call.name}"
            if call.attribute is None:
                yield Location(dot + name, owner, name, call.kind, call.called, call.function, call)
            else:
                old = owner._modules[call.attribute]
                yield Location(dot + name, owner, name, kind_of_module(old), old, old, call)


class _Usage:
    """Which attributes of the modules of a model their forward pass uses."""

    def __init__(self, model: nn.Module):
        classes = {_original_class(module) for module in model.modules()}
        self._others = frozenset(chain(*(find_references(cls).others for cls in classes)))
        self._reached = {model}
        queue = [model]
        for owner in queue:
            for name, child in owner._modules.items():
                if child is None or child in self._reached:
                    continue
                # An unused child with parameters is left to the user, who trains it already.
                if self._is_used(owner, name) or any(True for _ in child.parameters()):
                    self._reached.add(child)
                    queue.append(child)

    def find_reason(self, owner: nn.Module, name: str) -> str | None:
        """Return why no forward pass uses an attribute; None if one does."""
        if owner not in self._reached:
            return f"the {type(owner).__name__} that holds it is never used"
        if not self._is_used(owner, name):
            return f"no method of {type(owner).__name__} uses it"
        return None

    def _is_used(self, owner: nn.Module, name: str) -> bool:
        own = find_references(_original_class(owner)).own
        if own is None or "forward" in vars(owner) or name in own or name in self._others:
            return True
        child = owner._modules.get(name)
        return child is not None and any(key in own for key in _collections_with(owner, child))


def _collections_with(owner: nn.Module, child: object) -> list[str]:
    """Return the attributes of a module that are lists, tuples or dicts with a child."""
    return [
        name
        for name, value in vars(owner).items()
        if name not in ("_modules", "_apa_replaced") and isinstance(value, list | tuple | dict)
        if any(item is child for item in (value.values() if isinstance(value, dict) else value))
    ]


def find_kept_calls(model: nn.Module, kinds: set[str]) -> dict[str, str]:
    """Return the calls of activations that cannot be replaced, by module and function, and why."""
    kept = {}
    for prefix, owner in model.named_modules():
        cls = _original_class(owner)
        if isinstance(owner, torch.jit.ScriptModule):
            parent = model.get_submodule(prefix.rpartition(".")[0])
            if not isinstance(parent, torch.jit.ScriptModule):
                kept[prefix] = "it is a ScriptModule; inject before scripting or tracing"
            continue
        if kind_of_module(owner):
            continue
        reached = reach_methods(cls, ("forward",))
        reasons = dict.fromkeys(reached.unreadable, "its source cannot be rewritten")
        for function in chain(*(method.called_functions() for method in reached.methods)):
            reasons[function] = "it is not a method of the module"
        if "forward" in vars(owner) and find_calls(cls):
            reasons[cls.forward] = "forward is set on the instance, not by its class"
        for function, reason in reasons.items():
            if names := called_activations(function, kinds):
                name = f"{prefix}.{function.__name__}" if prefix else function.__name__
                called = ", ".join(names)
                kept[name] = f"{function.__qualname__} calls {called}, but {reason}"
    return kept


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


def _attributes_in_replaced_calls(owner: nn.Module) -> set[str | None]:
    replaced = {(method, index) for method, index, _ in _replaced_calls(owner)}
    calls = find_calls(_original_class(owner)) if replaced else ()
    return {call.attribute for call in calls if not replaced.isdisjoint(call.sites)}


def find_obstacle(location: Location) -> str | None:
    """Return why a location cannot be replaced by a module; None if it can."""
    owner = location.owner
    class_name = type(owner).__name__
    if location.call is not None and isinstance(owner, fx.GraphModule):
        return f"{class_name} is a traced graph; inject before tracing"
    if location.call is not None and iterates_over_children(_original_class(owner)):
        return f"{class_name} iterates over its children, which would include the new module"
    if location.call is not None and (method := find_copying_method(_original_class(owner))):
        return f"{class_name} defines {method}, so copies would lose the rewritten methods"
    if isinstance(location.old, nn.Module):
        for name in _collections_with(owner, location.old):
            return f"{class_name} also has this module in its attribute {name}, and may call it"
    return None


def share_modules(locations: Sequence[Location], modules: Sequence[Module]) -> list[Module]:
    """Return one module for all attributes that hold the same module."""
    first: dict[int, Module] = {}
    return [
        first.setdefault(id(loc.old), module)
        if isinstance(loc.old, nn.Module) and loc.call is None
        else module
        for loc, module in zip(locations, modules, strict=True)
    ]


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


def rewritten_methods(owner: nn.Module) -> tuple[str, tuple[str, ...]]:
    """Return the class of a module with replaced calls, and its rewritten methods."""
    cls = _original_class(owner)
    return f"{cls.__module__}.{cls.__qualname__}", type(owner)._apa_methods


def _class_with(owner: nn.Module, calls: list[tuple[str, int, str]]) -> type[nn.Module]:
    original = _original_class(owner)
    return subclass_with_modules(original, tuple(sorted(calls))) if calls else original
