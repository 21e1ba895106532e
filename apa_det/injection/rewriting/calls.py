"""The activations that the methods of a class call, and which of the calls are one."""

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import nn

from ..kinds import KINDS
from .source import Found, Method, methods_of

__all__ = ["Call", "Site", "calls_of", "iterates_over_itself"]

Site = tuple[str, int]  # the method that a call is in, and its place among that one's calls
Key = tuple[str | None, str | None, str]  # what is called: attribute, or kind and options

_ITERATORS = ("children", "named_children", "_modules")


@dataclass(frozen=True)
class Call:
    """A call of an activation in the source of a class.

    Attributes:
        name: that of the module to be called instead: ``act`` (``gate`` for a sigmoid), or
            ``act1``, ``act2``, … in a class with several; ``relu1``, ``relu2``, … for several calls
            of ``self.relu``.
        sites: where it is. They are several where only one of them runs, as in the branches of an
            ``if``: then the first calls of all branches are one, and so on.
        kind: its name in ``KINDS``.
        called: the function.
        function: the function with its options; None if they are no constants.
        attribute: ``relu`` for a call of ``self.relu``, for which the three before are None.
    """

    name: str
    sites: tuple[Site, ...]
    kind: str | None
    called: Callable | None
    function: Callable | None
    attribute: str | None


@cache
def calls_of(cls: type[nn.Module]) -> tuple[Call, ...]:
    """The calls of activations in ``forward``, and in the methods of self that it calls.

    Calls of modules, ``self.relu(x)``, are among them if there are several of the same module and
    it is put to no other use.
    """
    methods = {method.name: method for method in methods_of(cls)}
    references = Counter(name for method in methods.values() for name in method.references())
    walk = _Walk(methods)
    walk.method("forward", {})
    called = Counter((key[0], _name(key)) for key, _ in walk.calls)
    sites = Counter(key[0] for (key, _), found in walk.calls.items() for _ in found)
    numbers = Counter()
    calls = []
    for (key, _), found in walk.calls.items():
        attribute, name = key[0], _name(key)
        is_only = called[attribute, name] == 1
        if attribute and (is_only or sites[attribute] < references[attribute]):
            continue
        numbers[name] += 1
        calls.append(
            Call(
                name if is_only else f"{name}{numbers[name]}",
                tuple(site for site, _ in found),
                *(found[0][1].kind, found[0][1].called, found[0][1].function, attribute),
            )
        )
    return tuple(calls)


@cache
def iterates_over_itself(cls: type[nn.Module]) -> bool:
    """Whether ``forward`` goes through the children, and would take a new one for one of them."""
    return issubclass(cls, nn.Sequential | nn.ModuleList | nn.ModuleDict) or any(
        attribute in _ITERATORS for method in methods_of(cls) for attribute in method.references()
    )


def _name(key: Key) -> str:
    attribute, kind, _ = key
    return attribute or ("gate" if KINDS[kind].gate else "act")


class _Walk:
    """Goes through methods as they run, and finds the calls that are one.

    Attributes:
        calls: the sites of each, by what it calls and the count of such calls before it.
    """

    def __init__(self, methods: dict[str, Method]):
        self._methods = methods
        self._entered: set[str] = set()
        self.calls: dict[tuple[Key, int], list[tuple[Site, Found]]] = {}

    def method(self, name: str, counts: dict) -> dict:
        """Go through a method, and return the counts of calls up to its end."""
        if name not in self._methods or name in self._entered:
            return counts
        self._entered.add(name)
        return self._block(self._methods[name].tree.body, counts, self._methods[name])

    def _block(self, statements: list[ast.stmt], counts: dict, method: Method) -> dict:
        for i, statement in enumerate(statements):
            if not isinstance(statement, ast.If):
                counts = self._node(statement, counts, method)
                continue
            counts = self._node(statement.test, counts, method)
            rest = statements[i + 1 :]
            if _leaves(statement.body):
                return self._branches([statement.body, statement.orelse + rest], counts, method)
            if _leaves(statement.orelse):
                return self._branches([statement.body + rest, statement.orelse], counts, method)
            counts = self._branches([statement.body, statement.orelse], counts, method)
        return counts

    def _branches(self, branches: list[list[ast.stmt]], counts: dict, method: Method) -> dict:
        ends = [self._block(branch, counts, method) for branch in branches]
        return {key: max(end.get(key, 0) for end in ends) for end in ends for key in end}

    def _node(self, node: ast.AST, counts: dict, method: Method) -> dict:
        if isinstance(node, ast.IfExp):
            counts = self._node(node.test, counts, method)
            arms = [[ast.Expr(node.body)], [ast.Expr(node.orelse)]]
            return self._branches(arms, counts, method)
        fields = [value for _, value in ast.iter_fields(node)]
        for value in fields[::-1] if isinstance(node, ast.Call) else fields:  # arguments first
            if isinstance(value, ast.AST):
                counts = self._node(value, counts, method)
            elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                counts = self._block(value, counts, method)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, ast.AST):
                        counts = self._node(item, counts, method)
        if isinstance(node, ast.Attribute):
            return self.method(method.callee(node), counts)
        index = next((i for i, found in enumerate(method.calls) if found.node is node), None)
        if index is None:
            return counts
        found = method.calls[index]
        key = found.attribute, found.kind, found.options
        place = counts.get(key, 0)
        self.calls.setdefault((key, place), []).append(((method.name, index), found))
        return {**counts, key: place + 1}


def _leaves(statements: list[ast.stmt]) -> bool:
    """Whether what follows a branch does not run after it."""
    return bool(statements) and isinstance(
        statements[-1], ast.Return | ast.Raise | ast.Continue | ast.Break
    )
