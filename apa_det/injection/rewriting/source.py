"""The methods of a class, written anew from their source to call modules.

``F.relu(x)`` in a ``forward`` is no module that could be replaced. So the methods of the class are
written anew, with ``self.act(x)`` there, in a subclass, which modules take on as their class. It is
plain Python: what copies, saves, traces, scripts or compiles a module does so as before.
"""

import __future__

import ast
import builtins
import copy
import inspect
import linecache
import logging
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from itertools import count
from types import FunctionType, ModuleType

import torch
from torch import nn

from ..kinds import KINDS, kind_of_function

__all__ = ["Chosen", "Found", "Method", "calling_modules", "methods_of"]

logger = logging.getLogger(__name__)

_TENSOR_METHODS = {
    "relu": torch.relu,
    "relu_": torch.relu,
    "sigmoid": torch.sigmoid,
    "sigmoid_": torch.sigmoid,
}
_FUTURE_FLAGS = reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
_COUNT = count()

# Of each call: the method it is in, its place among that one's calls, and the name of its module
Chosen = tuple[tuple[str, int, str], ...]


@cache
def calling_modules(cls: type[nn.Module], chosen: Chosen) -> type[nn.Module]:
    """A subclass of ``cls`` whose methods call modules in the place of activations.

    Args:
        cls: the class.
        chosen: of each call to be replaced, its ``method``, its ``index``, and the name of the
            module. The subclass keeps it as ``_apa_calls``, and ``cls`` as ``_apa_original``.
    """

    def reduce_ex(self: nn.Module, protocol: int) -> tuple:
        """For copy and pickle, to which the subclass is its original and the calls that differ."""
        _, (_, *args), *state = super(made, self).__reduce_ex__(max(protocol, 2))
        return _new, (cls, chosen, *args), *state

    methods = methods_of(cls)
    names = {method.name: {} for method in methods}
    for method, index, name in chosen:
        names[method][index] = name
    changed = {method for method, its_names in names.items() if its_names}
    while callers := {m.name for m in methods if changed & {*m.parents.values()}} - changed:
        changed |= callers
    attributes = {
        method.name: method.with_modules(names[method.name], changed)
        for method in methods
        if method.name in changed
    }
    made = type(cls)(
        cls.__name__,
        (cls,),
        {
            **attributes,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "__reduce_ex__": reduce_ex,
            "_apa_original": cls,
            "_apa_calls": chosen,
        },
    )
    return made


def _new(cls: type[nn.Module], chosen: Chosen, *args) -> nn.Module:
    made = calling_modules(cls, chosen)
    return made.__new__(made, *args)


@dataclass(frozen=True)
class Found:
    """A call in the source: of a function of a kind, or of ``self.<attribute>``."""

    node: ast.Call
    argument: ast.expr
    kind: str | None
    called: Callable | None
    function: Callable | None
    options: str
    attribute: str | None


class Method:
    """A method and its source.

    Attributes:
        tree: the source.
        calls: the calls of activations in it, in the order of their ends.
        name: that of the attribute which a class with modules has it as: its own, or another for a
            parent's method that is called by ``super()``.
        owner: the class that defines it.
        parents: its calls by ``super()``: the names of methods, and what they are here.

    Raises:
        OSError, SyntaxError: there is no source that could be run anew.
    """

    def __init__(self, name: str, owner: type, function: FunctionType, is_static: bool):
        self.name = name
        self.owner = owner
        self.parents: dict[str, str] = {}
        self._function = inspect.unwrap(function)
        self._is_static = is_static
        code = self._function.__code__
        self._self = "self" if is_static else (*code.co_varnames[: code.co_argcount], None)[0]
        self.tree = ast.parse(textwrap.dedent(inspect.getsource(self._function))).body[0]
        if not isinstance(self.tree, ast.FunctionDef) or self._self is None:
            raise OSError(f"{self._function.__qualname__} is no def with an argument self.")
        if not is_static and not all(map(self._knows, self.tree.decorator_list)):
            raise OSError(f"A decorator of {self._function.__qualname__} is local.")
        self.calls = self._find_calls(self.tree)

    def references(self) -> Iterator[str]:
        """The names of the attributes of self that it uses, each as often as it does."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and self._is_self(node.value):
                yield node.attr

    def calls_by_super(self) -> list[str]:
        """The names of the methods that it calls by ``super()``."""
        return [node.attr for node in ast.walk(self.tree) if _is_super(node)]

    def callee(self, node: ast.Attribute) -> str | None:
        """The name, in the class with modules, of a method of self or of a parent."""
        if self._is_self(node.value):
            return node.attr
        return self.parents.get(node.attr) if _is_super(node) else None

    def with_modules(self, names: dict[int, str], changed: set[str]) -> Callable:
        """The method with calls of modules.

        Args:
            names: those of the modules, by the places of the calls.
            changed: the names of the methods that change too.
        """
        tree = copy.deepcopy(self.tree)
        calls = self._find_calls(tree)
        replaced = {id(calls[i].node): (calls[i].argument, name) for i, name in names.items()}
        parents = {old: new for old, new in self.parents.items() if new in changed}
        tree = _Rewriter(replaced, parents, self._self, self.owner.__name__).visit(tree)
        if self._is_static:
            tree.decorator_list = []
            (tree.args.posonlyargs or tree.args.args).insert(0, ast.arg(self._self))
        # Their values come from the method: names may mean something else where it is made anew.
        tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
        tree.args.kw_defaults = [d and ast.Constant(None) for d in tree.args.kw_defaults]
        tree.returns = self._if_known(tree.returns)
        for argument in ast.walk(tree.args):
            if isinstance(argument, ast.arg):
                argument.annotation = self._if_known(argument.annotation)
        method = self._compile(tree)
        function = inspect.unwrap(method)
        for attribute in ("__defaults__", "__kwdefaults__", "__annotations__", "__qualname__"):
            setattr(function, attribute, getattr(self._function, attribute))
        return method

    def _find_calls(self, tree: ast.FunctionDef) -> list[Found]:
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        nodes.sort(key=lambda node: (node.end_lineno, node.end_col_offset))
        return [found for node in nodes if (found := self._classify(node)) is not None]

    def _classify(self, node: ast.Call) -> Found | None:
        called, options = node.func, {k.arg: k.value for k in node.keywords}
        arguments = [*node.args, *([options.pop("input")] if "input" in options else [])]
        if any(isinstance(argument, ast.Starred) for argument in arguments):
            return None
        if isinstance(called, ast.Attribute) and self._is_self(called.value):
            plain = len(arguments) == 1 and not options
            return Found(node, *arguments, None, None, None, "", called.attr) if plain else None
        function = self._resolve(called)
        kind = kind_of_function(function)
        if kind is not None and arguments:
            with_options = _with_options(function, arguments[1:], options)
            written = ast.unparse(ast.Tuple([*arguments[1:], *options.values()], ast.Load()))
            return Found(node, arguments[0], kind, function, with_options, written, None)
        if isinstance(called, ast.Attribute) and not arguments and not options:
            function = _TENSOR_METHODS.get(called.attr)
            if function is not None and self._resolve(called.value) is None:
                kind = kind_of_function(function)
                return Found(node, called.value, kind, function, function, "()", None)
        return None

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._self and not self._is_static

    def _resolve(self, node: ast.expr) -> object | None:
        """What a dotted name stands for, if all but the last of it are Python modules."""
        code = self._function.__code__
        if isinstance(node, ast.Name) and node.id not in code.co_varnames + code.co_cellvars:
            cells = self._cells()
            return cells[node.id] if node.id in cells else self._function.__globals__.get(node.id)
        if isinstance(node, ast.Attribute):
            module = self._resolve(node.value)
            return getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
        return None

    def _knows(self, node: ast.expr) -> bool:
        """Whether all names in it mean something outside of the class, and of what it is in."""
        known = {*self._cells(), *self._function.__globals__, *vars(builtins)}
        return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} <= known

    def _if_known(self, annotation: ast.expr | None) -> ast.expr | None:
        return annotation if annotation is not None and self._knows(annotation) else None

    def _cells(self) -> dict[str, object]:
        names, cells = self._function.__code__.co_freevars, self._function.__closure__ or ()
        return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}

    def _compile(self, tree: ast.FunctionDef) -> Callable:
        function, cells = self._function, self._cells()
        maker = ast.parse(f"def make({', '.join(cells)}):\n    return {tree.name}").body[0]
        maker.body.insert(0, tree)
        source = ast.unparse(ast.fix_missing_locations(ast.Module([maker], [])))
        # Tracebacks, and torch.jit.script, look for the source in linecache.
        place = f"{self.owner.__module__}.{function.__qualname__}"
        filename = f"<apa_det {next(_COUNT)}: {place}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        flags = function.__code__.co_flags & _FUTURE_FLAGS
        scope = {}
        exec(compile(source, filename, "exec", flags, True), function.__globals__, scope)
        return scope["make"](**cells)


class _Rewriter(ast.NodeTransformer):
    """Puts calls of modules in the place of others, which are given with their argument.

    Calls by ``super()`` of the methods in ``parents`` become those of methods of self.
    """

    def __init__(
        self,
        replaced: dict[int, tuple[ast.expr, str]],
        parents: dict[str, str],
        self_name: str,
        owner: str,
    ):
        self._replaced = replaced
        self._parents = parents
        self._self = self_name
        self._private = f"_{owner.lstrip('_')}"

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if id(node) not in self._replaced:
            return self.generic_visit(node)
        argument, name = self._replaced[id(node)]
        module = ast.Attribute(ast.Name(self._self, ast.Load()), name, ast.Load())
        return ast.Call(module, [self.visit(argument)], [])

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        """A call whose result is not used, ``F.relu_(x)``, changes x in place."""
        argument, _ = self._replaced.get(id(node.value), (None, None))
        node = self.generic_visit(node)
        if not isinstance(argument, ast.Name | ast.Attribute | ast.Subscript):
            return node
        target = copy.deepcopy(argument)
        target.ctx = ast.Store()
        return ast.Assign([target], node.value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """``self.__name`` means another outside of its class."""
        if _is_super(node) and node.attr in self._parents:
            return ast.Attribute(
                ast.Name(self._self, ast.Load()), self._parents[node.attr], node.ctx
            )
        if node.attr.startswith("__") and not node.attr.endswith("__"):
            node.attr = self._private + node.attr
        return self.generic_visit(node)


def methods_of(cls: type[nn.Module]) -> list[Method]:
    """``forward``, and the methods that it uses, and so on, in the order of their use."""
    methods = []
    wanted = [("forward", "forward", 0)]  # its name, that in the class, and where to look from
    for new_name, name, start in wanted:
        place = next((i for i, c in enumerate(cls.__mro__) if i >= start and name in vars(c)), None)
        function = None if place is None else vars(cls.__mro__[place])[name]
        is_static = isinstance(function, staticmethod)
        function = function.__func__ if is_static else function
        if not isinstance(function, FunctionType) or _is_torchs(inspect.unwrap(function)):
            continue
        try:
            method = Method(new_name, cls.__mro__[place], function, is_static)
        except (OSError, SyntaxError):
            _warn_of_hidden_calls(inspect.unwrap(function))
            continue
        methods.append(method)
        more = [(used, used, 0) for used in method.references()]
        for used in method.calls_by_super():
            method.parents[used] = f"_apa_{used}_{place + 1}"
            more.append((method.parents[used], used, place + 1))
        wanted += [entry for entry in dict.fromkeys(more) if entry not in wanted]
    return methods


def _is_super(node: ast.AST) -> bool:
    """Whether it is ``super().name`` or ``super(Class, self).name``."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Call):
        return False
    return isinstance(node.value.func, ast.Name) and node.value.func.id == "super"


def _is_torchs(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"


def _warn_of_hidden_calls(function: FunctionType) -> None:
    called = {f.__name__ for kind in KINDS.values() if kind.default for f in kind.functions}
    called &= {*function.__code__.co_names}
    if called:
        logger.warning(
            "The source of %s cannot be written anew: its calls of %s stay as they are.",
            *(function.__qualname__, ", ".join(sorted(called))),
        )


def _with_options(
    function: Callable, arguments: list[ast.expr], options: dict[str | None, ast.expr]
) -> Callable | None:
    """The function with the options of a call; None if they are no constants."""
    try:
        values = [ast.literal_eval(value) for value in arguments]
        named = {name: ast.literal_eval(value) for name, value in options.items()}
    except ValueError:
        return None
    if None in named:
        return None
    if not values and not named:
        return function
    return lambda z: function(z, *values, **named)
