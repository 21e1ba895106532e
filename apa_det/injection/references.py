"""Which attributes of a module its class uses, by the source of its methods."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from types import FunctionType
from typing import NamedTuple

from torch import nn

from .rewriting.methods import Method, is_defined_in_torch, is_super
from .rewriting.reach import reach_methods

_ALL_CHILDREN = {"children", "modules", "named_children", "named_modules", "_modules", "__dict__"}
_NOT_FORWARD = {"__init__", "__new__", "__repr__", "__getstate__", "__setstate__", "extra_repr"}


class References(NamedTuple):
    """The attributes that the methods of a class use after construction.

    Attributes:
        own: names of the used attributes of self. None: any attribute may be used, since a method
            has no source, is a method of torch, passes self to a function, or iterates over all
            children.
        others: names of the used attributes of other objects.
    """

    own: frozenset[str] | None
    others: frozenset[str]


@cache
def find_references(cls: type[nn.Module]) -> References:
    """Return what the methods of a class use, except those that only ``__init__`` calls."""
    built_by = reach_methods(cls, ("__init__",)).methods
    only_called = {method.name for method in built_by}
    for method in built_by:
        only_called -= _uncalled(method)
    roots = [
        name
        for owner in cls.__mro__
        if not is_defined_in_torch(owner)
        for name, value in vars(owner).items()
        if isinstance(value, FunctionType | property | cached_property)
        if name not in _NOT_FORWARD | only_called
    ]
    roots = tuple(dict.fromkeys(["forward", *roots]))
    reached = reach_methods(cls, roots, properties=True)
    own = {name for method in reached.methods for name in method.references()}
    own.update(name for method in built_by for name in _in_nested_functions(method))
    known = (
        "forward" in {method.name for method in reached.methods}
        and not (reached.unreadable or reached.in_torch or own & _ALL_CHILDREN)
        and not any(map(_passes_self, reached.methods))
        and not any("__getattr__" in vars(owner) for owner in cls.__mro__ if owner is not nn.Module)
    )
    others = {name for method in reached.methods for name in _of_others(method)}
    return References(frozenset(own) if known else None, frozenset(others))


def _of_self(method: Method, tree: ast.AST) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and method.is_self(node.value):
            yield node


def _uncalled(method: Method) -> set[str]:
    """Return the attributes of self that are used without being called at once."""
    called = {id(node.func) for node in ast.walk(method.tree) if isinstance(node, ast.Call)}
    return {node.attr for node in _of_self(method, method.tree) if id(node) not in called}


def _in_nested_functions(method: Method) -> Iterator[str]:
    for function in ast.walk(method.tree):
        if isinstance(function, ast.Lambda | ast.FunctionDef) and function is not method.tree:
            yield from (node.attr for node in _of_self(method, function))


def _passes_self(method: Method) -> bool:
    """Return whether self is used other than in ``self.name`` and ``super(Class, self)``."""
    known = {id(node.value) for node in _of_self(method, method.tree)}
    for node in ast.walk(method.tree):
        if is_super(node):
            known.update(map(id, node.value.args))
    return any(method.is_self(node) and id(node) not in known for node in ast.walk(method.tree))


def _of_others(method: Method) -> set[str]:
    """Return the attributes of other objects, used in a method or the functions that it calls."""
    of_self = {id(node) for node in _of_self(method, method.tree)}
    nodes = (node for node in ast.walk(method.tree) if id(node) not in of_self)
    return set(_attributes(nodes)).union(*map(_attributes_in, method.called_functions()))


@cache
def _attributes_in(function: Callable) -> frozenset[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return frozenset()
    return frozenset(_attributes(ast.walk(tree)))


def _attributes(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the names in ``x.name`` and ``getattr(x, "name")``."""
    for node in nodes:
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))
