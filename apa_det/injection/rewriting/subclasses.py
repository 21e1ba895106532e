"""Subclasses with rewritten methods."""

from functools import cache

from torch import nn

from .methods import used_methods

# For each call: its method, its index among the calls of that method, and the name of its module
Replacements = tuple[tuple[str, int, str], ...]


@cache
def subclass_with_modules(cls: type[nn.Module], replacements: Replacements) -> type[nn.Module]:
    """Return a subclass of ``cls`` whose methods call modules instead of activations.

    Args:
        cls: the original class, stored in the subclass as ``_apa_original``.
        replacements: the calls to replace, stored in the subclass as ``_apa_calls``.
    """

    def reduce_ex(self: nn.Module, protocol: int) -> tuple:
        """For copy and pickle: reduce the subclass to ``cls`` and the replaced calls."""
        _, (_, *args), *state = super(subclass, self).__reduce_ex__(max(protocol, 2))
        return _new, (cls, replacements, *args), *state

    methods = used_methods(cls)
    names = {method.name: {} for method in methods}
    for method, index, name in replacements:
        names[method][index] = name
    changed = {method for method, replaced in names.items() if replaced}
    while callers := {m.name for m in methods if changed & {*m.parents.values()}} - changed:
        changed |= callers
    rewritten = [method for method in methods if method.name in changed]
    attributes = {m.name: m.with_modules(names[m.name], changed) for m in rewritten}
    attributes |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    attributes |= {"__reduce_ex__": reduce_ex, "_apa_original": cls, "_apa_calls": replacements}
    subclass = type(cls)(cls.__name__, (cls,), attributes)
    return subclass


def _new(cls: type[nn.Module], replacements: Replacements, *args) -> nn.Module:
    subclass = subclass_with_modules(cls, replacements)
    return subclass.__new__(subclass, *args)
