"""Methods of a class: their source, the activation calls in it, and rewriting these calls."""

import __future__

import ast
import builtins
import copy
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import count
from types import FunctionType, ModuleType

import torch

from ..activation_kinds import kind_of_function

_TENSOR_METHODS = {"relu": torch.relu, "sigmoid": torch.sigmoid}  # also with a trailing "_"
_FUTURE_FLAGS = reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
_COUNT = count()


@dataclass(frozen=True)
class SourceCall:
    """A call in the source: of an activation function, or of ``self.<attribute>``.

    Attributes:
        node: the call.
        argument: its input.
        kind: name of the activation in ``KINDS``; None for ``self.<attribute>``.
        called: the called function.
        function: the function with the options of the call; None if they are not constants.
        options: source of the options.
        attribute: name of the called attribute; None for a function.
    """

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
        tree: the parsed source.
        calls: the activation calls in it, in the order in which they end.
        name: its name in a subclass with rewritten methods. It differs from the original name for
            parents' methods that are called by ``super()``.
        owner: the class that defines it.
        source: its source.
        parents: the methods called by ``super()``: original name to name in the subclass.

    Raises:
        OSError, SyntaxError: if there is no source, or it cannot be compiled again.
    """

    def __init__(self, name: str, owner: type, function: FunctionType, is_static: bool):
        self.name = name
        self.owner = owner
        self.parents: dict[str, str] = {}
        self._function = inspect.unwrap(function)
        self._is_static = is_static
        code = self._function.__code__
        self._self = "self" if is_static else (*code.co_varnames[: code.co_argcount], None)[0]
        self.source = textwrap.dedent(inspect.getsource(self._function))
        self.tree = ast.parse(self.source).body[0]
        if not isinstance(self.tree, ast.FunctionDef) or self._self is None:
            raise OSError(f"{self._function.__qualname__} is not a def with an argument self.")
        if not is_static and not all(map(self._is_resolvable, self.tree.decorator_list)):
            raise OSError(f"{self._function.__qualname__} has a local decorator.")
        self.calls = self._find_calls(self.tree)

    def references(self) -> Iterator[str]:
        """Yield the name of each used attribute of self, with repetitions."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and self.is_self(node.value):
                yield node.attr

    def called_functions(self) -> set[FunctionType]:
        """Return the functions that are called by a global name, without those of torch."""
        called = [self._resolve(n.func) for n in ast.walk(self.tree) if isinstance(n, ast.Call)]
        functions = [inspect.unwrap(f) for f in called if isinstance(f, FunctionType)]
        return {f for f in functions if not is_defined_in_torch(f)}

    def calls_by_super(self) -> list[str]:
        """Return the names of the methods called by ``super()``."""
        return [node.attr for node in ast.walk(self.tree) if is_super(node)]

    def callee(self, node: ast.Attribute) -> str | None:
        """Return the name in the subclass of a method of self or ``super()``, else None."""
        if self.is_self(node.value):
            return node.attr
        return self.parents.get(node.attr) if is_super(node) else None

    def with_modules(self, names: dict[int, str], changed: set[str]) -> Callable:
        """Return the method with calls replaced by modules.

        Args:
            names: names of the modules, by the index of the call in ``calls``.
            changed: names of all methods that are rewritten.
        """
        tree = copy.deepcopy(self.tree)
        calls = self._find_calls(tree)
        replaced = {id(calls[i].node): (calls[i].argument, name) for i, name in names.items()}
        parents = {old: new for old, new in self.parents.items() if new in changed}
        tree = _Rewriter(replaced, parents, self._self, self.owner.__name__).visit(tree)
        if self._is_static:
            tree.decorator_list = []
            (tree.args.posonlyargs or tree.args.args).insert(0, ast.arg(self._self))
        # Copied from the original method below: names may resolve differently here.
        tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
        tree.args.kw_defaults = [d and ast.Constant(None) for d in tree.args.kw_defaults]
        tree.returns = self._if_resolvable(tree.returns)
        for argument in ast.walk(tree.args):
            if isinstance(argument, ast.arg):
                argument.annotation = self._if_resolvable(argument.annotation)
        method = self._compile(tree)
        function = inspect.unwrap(method)
        for attribute in ("__defaults__", "__kwdefaults__", "__annotations__", "__qualname__"):
            setattr(function, attribute, getattr(self._function, attribute))
        return method

    def _find_calls(self, tree: ast.FunctionDef) -> list[SourceCall]:
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        nodes.sort(key=lambda node: (node.end_lineno, node.end_col_offset))
        return [found for node in nodes if (found := self._classify(node)) is not None]

    def _classify(self, node: ast.Call) -> SourceCall | None:
        called, options = node.func, {k.arg: k.value for k in node.keywords}
        arguments = [*node.args, *([options.pop("input")] if "input" in options else [])]
        if any(isinstance(argument, ast.Starred) for argument in arguments):
            return None
        if isinstance(called, ast.Attribute) and self.is_self(called.value):
            if len(arguments) != 1 or options:
                return None
            return SourceCall(node, arguments[0], None, None, None, "", called.attr)
        function = self._resolve(called)
        kind = kind_of_function(function)
        if kind is not None and arguments:
            with_options = _with_options(function, arguments[1:], options)
            written = ast.unparse(ast.Tuple([*arguments[1:], *options.values()], ast.Load()))
            return SourceCall(node, arguments[0], kind, function, with_options, written, None)
        if isinstance(called, ast.Attribute) and not arguments and not options:
            function = _TENSOR_METHODS.get(called.attr.removesuffix("_"))
            if function is not None and self._resolve(called.value) is None:
                kind = kind_of_function(function)
                return SourceCall(node, called.value, kind, function, function, "()", None)
        return None

    def is_self(self, node: ast.AST) -> bool:
        """Return whether a node is the argument ``self``."""
        return isinstance(node, ast.Name) and node.id == self._self and not self._is_static

    def _resolve(self, node: ast.expr) -> object | None:
        """Return the object of a dotted name if all its prefixes are Python modules, else None."""
        code = self._function.__code__
        if isinstance(node, ast.Name) and node.id not in code.co_varnames + code.co_cellvars:
            cells = self._cells()
            return cells[node.id] if node.id in cells else self._function.__globals__.get(node.id)
        if isinstance(node, ast.Attribute):
            module = self._resolve(node.value)
            return getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
        return None

    def _is_resolvable(self, node: ast.expr) -> bool:
        """Return whether all names in the expression are globals, builtins or closure variables."""
        names = {*self._cells(), *self._function.__globals__, *vars(builtins)}
        return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} <= names

    def _if_resolvable(self, annotation: ast.expr | None) -> ast.expr | None:
        return annotation if annotation is not None and self._is_resolvable(annotation) else None

    def _cells(self) -> dict[str, object]:
        names, cells = self._function.__code__.co_freevars, self._function.__closure__ or ()
        return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}

    def _compile(self, tree: ast.FunctionDef) -> Callable:
        function, cells = self._function, self._cells()
        maker = ast.parse(f"def make({', '.join(cells)}):\n    return {tree.name}").body[0]
        maker.body.insert(0, tree)
        source = ast.unparse(ast.fix_missing_locations(ast.Module([maker], [])))
        # Tracebacks and torch.jit.script read the source from linecache.
        name = f"{self.owner.__module__}.{function.__qualname__}"
        filename = f"<apa_det {next(_COUNT)}: {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        flags = function.__code__.co_flags & _FUTURE_FLAGS
        scope = {}
        exec(compile(source, filename, "exec", flags, True), function.__globals__, scope)
        return scope["make"](**cells)


class _Rewriter(ast.NodeTransformer):
    """Replace activation calls by calls of modules, and ``super()`` calls by calls of self.

    Args:
        replaced: argument and module name of each call to replace, by the id of its node.
        parents: methods called by ``super()`` to replace: original name to name in the subclass.
        self_name: the argument ``self``.
        owner: name of the class that defines the method.
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
        """Assign the result of a call that is a statement: ``F.relu_(x)`` modifies x."""
        argument, _ = self._replaced.get(id(node.value), (None, None))
        node = self.generic_visit(node)
        if not isinstance(argument, ast.Name | ast.Attribute | ast.Subscript):
            return node
        target = copy.deepcopy(argument)
        target.ctx = ast.Store()
        return ast.Assign([target], node.value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """Mangle ``self.__name``, which Python does not do outside of the class."""
        if is_super(node) and node.attr in self._parents:
            owner = ast.Name(self._self, ast.Load())
            return ast.Attribute(owner, self._parents[node.attr], node.ctx)
        if node.attr.startswith("__") and not node.attr.endswith("__"):
            node.attr = self._private + node.attr
        return self.generic_visit(node)


def is_super(node: ast.AST) -> bool:
    """Return whether a node is ``super().name`` or ``super(Class, self).name``."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Call):
        return False
    return isinstance(node.value.func, ast.Name) and node.value.func.id == "super"


def is_defined_in_torch(function: Callable) -> bool:
    return (getattr(function, "__module__", None) or "").split(".")[0] == "torch"


def _with_options(
    function: Callable, arguments: list[ast.expr], options: dict[str | None, ast.expr]
) -> Callable | None:
    """Return the function with the options of a call; None if they are not constants."""
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
