"""The activation calls in the methods of a class, and which of them share a module."""

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import nn

from ..activation_kinds import KINDS
from .methods import Method, SourceCall
from .reach import used_methods

Site = tuple[str, int]  # method, and index among the calls of that method
Key = tuple[str | None, str | None, str]  # attribute, or kind and options, of what is called

_ITERATORS = ("children", "named_children", "_modules")


@dataclass(frozen=True)
class ActivationCall:
    """One or more calls in the source of a class that share a module.

    Attributes:
        name: name of the new module: ``act`` (``gate`` for a sigmoid), or ``act1``, ``act2``, … if
            the class has several; ``relu1``, ``relu2``, … for several calls of ``self.relu``.
        sites: the calls. There are several if only one of them runs, as in the branches of an
            ``if``: then the first calls of all branches share a module, and so on.
        kind: name of the activation in ``KINDS``.
        called: the called function.
        function: the function with the options of the call; None if they are not constants.
        attribute: ``relu`` for a call of ``self.relu``; then ``kind``, ``called`` and ``function``
            are None.
    """

    name: str
    sites: tuple[Site, ...]
    kind: str | None
    called: Callable | None
    function: Callable | None
    attribute: str | None


@cache
def find_calls(cls: type[nn.Module]) -> tuple[ActivationCall, ...]:
    """Return the activation calls in ``forward`` and in the methods of self that it calls.

    Calls of a module, ``self.relu(x)``, are included if there are several and the class uses the
    module in no other way.
    """
    methods = {method.name: method for method in used_methods(cls)}
    references = Counter(name for method in methods.values() for name in method.references())
    walk = _ExecutionOrder(methods)
    walk.visit_method("forward", {})
    called = Counter((key[0], _name(key)) for key, _ in walk.calls)
    sites = Counter(key[0] for (key, _), group in walk.calls.items() for _ in group)
    numbers = Counter()
    calls = []
    for (key, _), group in walk.calls.items():
        first = group[0][1]
        attribute, name = key[0], _name(key)
        is_only = called[attribute, name] == 1
        if attribute and (is_only or sites[attribute] < references[attribute]):
            continue
        numbers[name] += 1
        calls.append(
            ActivationCall(
                name if is_only else f"{name}{numbers[name]}",
                tuple(site for site, _ in group),
                *(first.kind, first.called, first.function, attribute),
            )
        )
    return tuple(calls)


@cache
def iterates_over_children(cls: type[nn.Module]) -> bool:
    """Return whether the methods iterate over the children, which would include a new module."""
    return issubclass(cls, nn.Sequential | nn.ModuleList | nn.ModuleDict) or any(
        attribute in _ITERATORS for method in used_methods(cls) for attribute in method.references()
    )


def _name(key: Key) -> str:
    attribute, kind, _ = key
    return attribute or ("gate" if KINDS[kind].gate else "act")


class _ExecutionOrder:
    """Walk methods in order of execution and group calls of which only one runs.

    ``counts`` is the number of calls so far, by key. Branches start from the same counts, so the
    n-th calls of each branch are grouped.

    Attributes:
        calls: the grouped calls, by key and number of calls with this key before.
    """

    def __init__(self, methods: dict[str, Method]):
        self._methods = methods
        self._entered: set[str] = set()
        self.calls: dict[tuple[Key, int], list[tuple[Site, SourceCall]]] = {}

    def visit_method(self, name: str, counts: dict) -> dict:
        """Walk a method once, and return the counts at its end."""
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
            if _exits(statement.body):
                return self._branches([statement.body, statement.orelse + rest], counts, method)
            if _exits(statement.orelse):
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
            return self.visit_method(method.callee(node), counts)
        index = next((i for i, call in enumerate(method.calls) if call.node is node), None)
        if index is None:
            return counts
        call = method.calls[index]
        key = call.attribute, call.kind, call.options
        number = counts.get(key, 0)
        self.calls.setdefault((key, number), []).append(((method.name, index), call))
        return {**counts, key: number + 1}


def _exits(statements: list[ast.stmt]) -> bool:
    """Return whether a branch ends with return, raise, continue or break."""
    return bool(statements) and isinstance(
        statements[-1], ast.Return | ast.Raise | ast.Continue | ast.Break
    )
