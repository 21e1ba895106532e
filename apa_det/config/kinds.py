"""What the value of a config key may be. The text of a kind completes "KEY must be ..."."""

import operator
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import pairwise

from detectron2.utils.registry import Registry

from ..text import shown

_LARGEST_INTEGER = 2**63 - 1
_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_INTERVAL = re.compile(r"in ([\[(])(\S+), (\S+)([\])])")


class Kind:
    """Values that satisfy a condition.

    Args:
        text: completes "must be", e.g. "an integer >= 1".
        accepts: the condition.
    """

    def __init__(self, text: str, accepts: Callable[[object], bool]):
        self.text, self.accepts = text, accepts

    def fault(self, value: object) -> str | None:
        """Return what is wrong with a value: what follows its key in a sentence, or None."""
        return None if self.accepts(value) else must_be(self.text, shown(value))

    def described(self) -> str:
        """Return the allowed values for the documentation, in markdown."""
        return self.text


def must_be(text: str, value: str) -> str:
    """Return " must be TEXT, got VALUE" for a value as it is shown."""
    return f" must be {text}{';' if ', ' in text else ','} got {value}"


def number(limits: str = "") -> Kind:
    """Return the kind of finite numbers, e.g. ``number(">= 0")`` or ``number("in [0, 1)")``."""
    holds = _condition(limits)
    text = f"a number {limits}" if limits else "a finite number"
    return Kind(text, lambda value: _is_number(value) and holds(value))


def integer(limits: str = "") -> Kind:
    """Return the kind of integers, e.g. ``integer(">= 1")``."""
    holds = _condition(limits)
    return Kind(
        f"an integer {limits}".rstrip(),
        lambda value: type(value) is int and abs(value) <= _LARGEST_INTEGER and holds(value),
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # False for NaN


def _condition(limits: str) -> Callable[[float], bool]:
    if not limits:
        return lambda value: True
    if interval := _INTERVAL.fullmatch(limits):
        left, low, high, right = interval.groups()
        above = _OPERATORS[">=" if left == "[" else ">"]
        below = _OPERATORS["<=" if right == "]" else "<"]
        return lambda value: above(value, float(low)) and below(value, float(high))
    name, limit = limits.split(" ")
    return lambda value: _OPERATORS[name](value, float(limit))


boolean = Kind("True or False", lambda value: isinstance(value, bool))
text = Kind("a string", lambda value: isinstance(value, str))
anything = Kind("any value", lambda value: True)


def one_of(*values: object) -> Kind:
    """Return the kind of these values; they are compared with their types."""
    known = [(type(value), value) for value in values]
    return Kind(_alternatives(values), lambda value: (type(value), value) in known)


def _join(texts: Sequence[str]) -> str:
    return " or ".join([", ".join(texts[:-1]), texts[-1]])


def _alternatives(values: Sequence) -> str:
    shown = ['""' if value == "" else str(value) for value in values]
    return f"one of {', '.join(shown)}" if len(shown) > 2 else " or ".join(shown)


class _Registered(Kind):
    def __init__(self, registry: str, also: tuple[str, ...], without: str):
        self._registry, self._also, self._without = registry, also, without

    def _entries(self) -> dict[str, object] | Registry:
        return pkgutil.resolve_name(self._registry)

    def _names(self) -> list[str]:
        return [*self._also, *sorted(dict(self._entries()).keys() - {self._without})]

    @property
    def text(self) -> str:
        return _alternatives(self._names())

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and value in self._names()

    def fault(self, value: object) -> str | None:
        fault = super().fault(value)
        if fault is None or not isinstance(value, str):
            return fault
        names = {name.lower(): name for name in self._names()}
        if near := get_close_matches(value.lower(), names, n=1):
            return f"{fault}. Did you mean {names[near[0]]}?"
        if isinstance(self._entries(), dict):
            return fault
        return f"{fault}. Fix the name, or give --import with the module that registers it"

    def described(self) -> str:
        entries = self._entries()
        if isinstance(entries, dict):
            return self.text
        registry = self._registry.replace(":", ".")
        ours = [
            name
            for name, entry in sorted(entries)
            if registry.startswith("apa_det.") and entry.__module__.startswith("apa_det.")
        ]
        known = [*self._also, *ours]
        more = f"{'another' if ours else 'a'} name in `{registry}`"
        return f"{_alternatives(known)} or {more}" if known else more


def name_in(registry: str, *also: str, without: str = "") -> Kind:
    """Return the kind of the names in a registry, which is imported when a value is checked.

    Args:
        registry: ``package.module:NAME`` of a registry, or of a dict.
        also: further names.
        without: a name in the registry that is not allowed.
    """
    return _Registered(registry, also, without)


class _List(Kind):
    def __init__(self, text: str, entry: Kind, holds: Callable[[Sequence], bool]):
        super().__init__(text, lambda value: self.fault(value) is None)
        self._entry, self._holds = entry, holds

    def fault(self, value: object) -> str | None:
        if not isinstance(value, list | tuple):
            return must_be(self.text, shown(value))
        for index, entry in enumerate(value):
            if fault := self._entry.fault(entry):
                return f"[{index}]{fault}"
        return None if self._holds(value) else must_be(self.text, shown(value))

    def described(self) -> str:
        entries = "" if self._entry is anything else f", each entry {self._entry.described()}"
        return self.text + entries


def list_of(entry: Kind, *lengths: int) -> Kind:
    """Return the kind of lists and tuples of a kind, with one of these lengths if there are any."""
    text = f"a list of length {' or '.join(map(str, lengths))}" if lengths else "a list"
    return _List(text, entry, lambda value: not lengths or len(value) in lengths)


def some(entry: Kind) -> Kind:
    """Return the kind of lists and tuples of a kind that are not empty."""
    return _List("a non-empty list", entry, lambda value: len(value) > 0)


def ascending(entry: Kind, *, strictly: bool = False) -> Kind:
    """Return the kind of ascending lists of numbers of a kind."""
    text = "a strictly ascending list" if strictly else "an ascending list"
    below = operator.lt if strictly else operator.le
    return _List(text, entry, lambda value: all(below(a, b) for a, b in pairwise(value)))


def range_pair(limits: str = "") -> Kind:
    """Return the kind of pairs [low, high] of numbers with low <= high."""
    text = "[low, high] with low <= high"
    return _List(text, number(limits), lambda value: len(value) == 2 and value[0] <= value[1])


class _Either(Kind):
    def __init__(self, *kinds: Kind):
        self._kinds = kinds

    @property
    def text(self) -> str:
        return _join([kind.text for kind in self._kinds])

    def accepts(self, value: object) -> bool:
        return any(kind.accepts(value) for kind in self._kinds)

    def fault(self, value: object) -> str | None:
        if self.accepts(value):
            return None
        faults = [kind.fault(value) for kind in self._kinds]
        return next((f for f in faults if f.startswith("[")), must_be(self.text, shown(value)))

    def described(self) -> str:
        return _join([kind.described() for kind in self._kinds])


def either(*kinds: Kind) -> Kind:
    """Return the kind of values that are of one of these kinds."""
    return _Either(*kinds)


def optional(kind: Kind) -> Kind:
    """Return the kind that also accepts None."""
    return either(one_of(None), kind)
