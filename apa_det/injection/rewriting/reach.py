"""The methods of a class that its ``forward`` uses."""

import inspect
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from types import FunctionType
from typing import NamedTuple

from torch import nn

from ..activation_kinds import KINDS
from .methods import Method, is_defined_in_torch


class Reached(NamedTuple):
    """The methods that a method uses, directly or indirectly.

    Attributes:
        methods: those with a source, in order of use.
        unreadable: those without.
        in_torch: whether methods of torch are among them, except those of ``nn.Module``.
    """

    methods: list[Method]
    unreadable: list[Callable]
    in_torch: bool


def used_methods(cls: type[nn.Module]) -> list[Method]:
    """Return ``forward`` and the methods used by it, directly or indirectly, in order of use."""
    return reach_methods(cls, ("forward",)).methods


@cache
def reach_methods(
    cls: type[nn.Module], roots: tuple[str, ...], properties: bool = False
) -> Reached:
    """Return the methods named ``roots`` and those used by them, with properties if asked for."""
    methods, unreadable, in_torch = [], [], False
    queue = [(name, name, 0) for name in roots]  # name in the subclass, original name, MRO start
    for new_name, name, start in queue:
        depth = next((i for i, c in enumerate(cls.__mro__) if i >= start and name in vars(c)), None)
        function = None if depth is None else vars(cls.__mro__[depth])[name]
        is_static = isinstance(function, staticmethod)
        function = function.__func__ if is_static else function
        if properties and isinstance(function, property | cached_property):
            function = function.fget if isinstance(function, property) else function.func
        if not callable(function) or isinstance(function, type | nn.Module | classmethod):
            continue
        function = inspect.unwrap(function)
        if is_defined_in_torch(function):
            in_torch |= cls.__mro__[depth] is not nn.Module
            continue
        try:
            if not isinstance(function, FunctionType):
                raise OSError(f"{function} has no source.")
            method = Method(new_name, cls.__mro__[depth], function, is_static)
        except (OSError, SyntaxError):
            unreadable.append(function)
            continue
        methods.append(method)
        more = [(used, used, 0) for used in method.references()]
        for used in method.calls_by_super():
            method.parents[used] = f"_apa_{used}_{depth + 1}"
            more.append((method.parents[used], used, depth + 1))
        queue += [entry for entry in dict.fromkeys(more) if entry not in queue]
    return Reached(methods, unreadable, in_torch)


def called_activations(function: Callable, kinds: Iterable[str]) -> list[str]:
    """Return the names of the activations of these kinds that a function seems to call."""
    names = {activation.__name__ for kind in kinds for activation in KINDS[kind].functions}
    code = getattr(function, "__code__", None)
    return sorted(names.intersection(code.co_names)) if code else []
