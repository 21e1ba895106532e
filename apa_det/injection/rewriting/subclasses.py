"""Subclasses with rewritten methods."""

import copyreg
import hashlib
from functools import cache

from torch import nn

from ...errors import UserError
from .reach import used_methods

# For each call: its method, its index among the calls of that method, and the name of its module
Replacements = tuple[tuple[str, int, str], ...]

_COPYING = ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getnewargs_ex__")


def find_copying_method(cls: type[nn.Module]) -> str | None:
    """Return a method of ``cls`` that replaces how instances are copied or pickled, else None."""
    names = (
        name for name in _COPYING if getattr(cls, name, None) != getattr(nn.Module, name, None)
    )
    return next(names, None)


@cache
def subclass_with_modules(cls: type[nn.Module], replacements: Replacements) -> type[nn.Module]:
    """Return a subclass of ``cls`` whose methods call modules instead of activations.

    Instances and the subclass are pickled as ``cls``, the replacements and a digest of the source.

    Args:
        cls: the original class, stored in the subclass as ``_apa_original``.
        replacements: the calls to replace, stored in the subclass as ``_apa_calls``.

    Raises:
        UserError: if Python or ``cls`` does not allow the subclass.
    """

    def reduce_ex(self: nn.Module, protocol: int) -> tuple:
        """For copy and pickle: reduce the subclass to ``cls`` and the replaced calls."""
        _, (_, *args), *state = super(subclass, self).__reduce_ex__(max(protocol, 2))
        return _new, (cls, replacements, _digest(cls), *args), *state

    methods = used_methods(cls)
    names = {method.name: {} for method in methods}
    for method, index, name in replacements:
        names[method][index] = name
    changed = {method for method, replaced in names.items() if replaced}
    while callers := {m.name for m in methods if changed & {*m.parents.values()}} - changed:
        changed |= callers
    rewritten = [method for method in methods if method.name in changed]
    attributes = {m.name: m.with_modules(names[m.name], changed) for m in rewritten}
    sources = tuple(f"{m.owner.__qualname__}.{m.tree.name}" for m in rewritten)
    attributes |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    attributes |= {"__reduce_ex__": reduce_ex, "_apa_original": cls, "_apa_calls": replacements}
    attributes |= {"_apa_methods": sources}
    try:
        subclass = _metaclass(type(cls))(cls.__name__, (cls,), attributes)
    except Exception as error:  # of Python, __init_subclass__ or the metaclass
        raise UserError(
            f"The methods of {cls.__qualname__} cannot be rewritten, since it allows no subclass: "
            f"{error}. Exclude its activations by names."
        ) from error
    return subclass


@cache
def _metaclass(base: type[type]) -> type[type]:
    """Return a subclass of a metaclass, for whose classes copyreg has a reducer."""
    metaclass = type(base.__name__, (base,), {})
    copyreg.pickle(
        metaclass,
        lambda cls: (_load, (cls._apa_original, cls._apa_calls, _digest(cls._apa_original))),
    )
    return metaclass


@cache
def _digest(cls: type[nn.Module]) -> str:
    """Return a digest of the source of the methods that ``replacements`` refer to."""
    sources = [f"{method.name}\n{method.source}" for method in used_methods(cls)]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def _load(cls: type[nn.Module], replacements: Replacements, digest: str) -> type[nn.Module]:
    if digest != _digest(cls):
        raise UserError(
            f"The pickle has rewritten methods of {cls.__module__}.{cls.__qualname__}; their "
            "source differs here. Load a state dict into a newly injected model instead."
        )
    return subclass_with_modules(cls, replacements)


def _new(cls: type[nn.Module], replacements: Replacements, digest: str, *args) -> nn.Module:
    subclass = _load(cls, replacements, digest)
    return subclass.__new__(subclass, *args)
