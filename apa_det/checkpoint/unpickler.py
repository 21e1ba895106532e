"""A pickle reader that builds only plain data, tensors and arrays.

``pickle`` imports and calls whatever a file names. Here names are never imported: the opcodes that
:mod:`pickletools` decodes run on our own stack, and only :data:`CONSTRUCTORS` can be called. Every
other object is an :class:`Inert`, which discards its arguments, items and state.
"""

import pickletools
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import torch

from .constructors import CONSTRUCTORS, Inert, NumpyType, numpy_contents, numpy_to_tensor


class RunsCodeError(ValueError):
    """A pickle calls a function that could run a program."""


def unpickle(
    file: BinaryIO,
    *,
    load_storage: Callable[[tuple], object] | None = None,
    load_bytes: Callable[[bytes], object] | None = None,
) -> tuple[object, set[str]]:
    """Read one pickle.

    Args:
        file: a binary file at the start of the pickle, with ``read``, ``readline`` and ``tell``. It
            is left at the end of the pickle.
        load_storage: converts a persistent id to a :class:`Storage`; see :func:`storage_dtype`.
        load_bytes: reads a storage that is a whole file in bytes, as plain ``pickle`` writes it.

    Returns:
        The object, made of lists, tuples, sets, dicts, strings, bytes, numbers, None, dtypes,
        tensors and :class:`Inert`; and the names of all inert objects. Dicts keep only keys that
        are scalars or tuples of scalars, and only values that are not inert. NumPy arrays in a
        dict or list become tensors.

    Raises:
        RunsCodeError: the pickle calls a function that could run a program.
        Exception: any type, if the pickle is malformed.
    """
    machine = _Machine(load_storage, load_bytes)
    return machine.run(file), machine.inert


class _Global(Inert):
    """A function or class named in a pickle."""

    __slots__ = ()


class _Machine:
    """The pickle machine: its stack, marks and memo."""

    def __init__(self, load_storage, load_bytes):
        self.stack, self.marked, self.memo = [], [], {}
        self.unfilled = {}  # arrays whose contents are not set yet, by id
        self.inert = set()
        self.load_storage = load_storage
        self.constructors = {
            **CONSTRUCTORS,
            "builtins.frozenset": lambda items=(): self._add_items(set(), items),
            "builtins.set": lambda items=(): self._add_items(set(), items),
            "collections.Counter": self._dict,
            "collections.OrderedDict": self._dict,
            "collections.defaultdict": lambda factory=None: {},
            "numpy._core.multiarray._reconstruct": self._array,
            "numpy.core.multiarray._reconstruct": self._array,
            "torch._tensor._rebuild_from_type_v2": self._rebuild_from_type,
            "torch.storage._load_from_bytes": load_bytes,
        }

    def run(self, file: BinaryIO) -> object:
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name in _LITERALS:
                self.stack.append(arg)
            else:
                self._step(opcode.name, arg)
        return self._data(self.stack.pop())

    def _step(self, opcode: str, arg: object) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "READONLY_BUFFER" | "STOP":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")

            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "POP_MARK":
                self._to_mark()
            case "POP" if not stack:
                self._to_mark()
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])

            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[i] for i in range(-count, 0))]
            case "TUPLE":
                items = self._to_mark()
                self.stack.append(tuple(items))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                items = self._to_mark()
                self.stack.append(self._extend([], items))
            case "APPEND":
                item = stack.pop()
                self._extend(stack[-1], [item])
            case "APPENDS":
                items = self._to_mark()
                self._extend(self.stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._to_mark()
                self.stack.append(self._set_items({}, items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self._to_mark()
                self._set_items(self.stack[-1], items)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = self._to_mark()
                self._add_items(self.stack[-1], items)
            case "FROZENSET":
                items = self._to_mark()
                self.stack.append(self._add_items(set(), items))

            case "GLOBAL":
                stack.append(_global(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(module, name))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(self._call(function, args))
            case "NEWOBJ_EX":
                kwargs, args, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._call(function, (*args, *kwargs.values())))
            case "INST":
                args = self._to_mark()
                self.stack.append(self._call(_global(*arg.split(" ", 1)), tuple(args)))
            case "OBJ":
                function, *args = self._to_mark()
                self.stack.append(self._call(function, tuple(args)))
            case "BUILD":
                state = stack.pop()
                stack[-1] = self._build(stack[-1], state)
            case "BINPERSID":
                stack.append(self.load_storage(stack.pop()))
            case _:
                raise ValueError(f"unsupported opcode {opcode}")

    def _to_mark(self) -> list:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def _data(self, value: object) -> object:
        """Convert an array to a tensor, or to Inert if its contents were never set."""
        if id(value) in self.unfilled:
            return Inert("numpy.ndarray")
        return numpy_to_tensor(value) if type(value) is np.ndarray else value

    def _extend(self, target: object, items: list) -> object:
        if isinstance(target, Inert):
            return target
        _expect(list, target)
        target.extend(map(self._data, items))
        return target

    def _set_items(self, target: object, items: list) -> object:
        if isinstance(target, Inert):
            return target
        _expect(dict, target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            value = self._data(value)
            if _is_key(key) and not isinstance(value, Inert):
                target[key] = value
        return target

    def _add_items(self, target: object, items: list) -> object:
        if isinstance(target, Inert):
            return target
        _expect(set, target)
        target.update(filter(_is_key, items))
        return target

    def _call(self, function: object, args: tuple) -> object:
        _expect(tuple, args)
        if not isinstance(function, Inert):
            raise ValueError("it calls an object that is not a global")
        if _runs_code(function.name):
            raise RunsCodeError(function.name)
        constructor = self.constructors.get(function.name) if type(function) is _Global else None
        result = constructor(*args) if constructor is not None else Inert(function.name)
        if type(result) is Inert:
            self.inert.add(result.name)
        return result

    def _build(self, target: object, state: object) -> object:
        if isinstance(target, NumpyType):
            target.order = state[1] if state[1] in ("<", ">") else "="
        elif type(target) is np.ndarray:
            return self._fill(target, state)
        return target

    def _dict(self, items: object = ()) -> dict:
        pairs = items.items() if type(items) is dict else items
        return self._set_items({}, [part for pair in pairs for part in pair])

    def _array(self, *_) -> np.ndarray:
        array = np.empty(0, "u1")
        self.unfilled[id(array)] = array
        return array

    def _fill(self, array: np.ndarray, state: tuple) -> object:
        """Set the contents of an array, only once: a view of it may exist afterwards."""
        *_, shape, numpy_type, column_major, data = state
        if not isinstance(numpy_type, NumpyType):
            return Inert("numpy.ndarray")
        contents = numpy_contents(data, numpy_type)
        contents = contents.reshape(shape, order="F" if column_major else "C")
        del self.unfilled[id(array)]
        array.__setstate__((1, contents.shape, contents.dtype, False, contents.tobytes()))
        return array

    def _rebuild_from_type(self, function: Inert, _, args: tuple, __) -> object:
        return self._call(function, args)


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_TORCH_DTYPES = {str(t): t for t in vars(torch).values() if isinstance(t, torch.dtype)}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in Python 2


def _global(module: str, name: str) -> object:
    _expect(str, module)
    _expect(str, name)
    name = f"{_RENAMED.get(module, module)}.{name}"
    return _TORCH_DTYPES.get(name) or _Global(name)


# Calls of these get a clear message. Calls of other unlisted names are not run either.
_RUNNERS = frozenset(
    "os nt posix pty subprocess sys importlib runpy ctypes socket shutil marshal pickle _pickle "
    "webbrowser timeit".split()
)
_EVALUATORS = frozenset("eval exec execfile compile __import__ open file input breakpoint".split())


def _runs_code(name: str) -> bool:
    parts = name.split(".")
    if "builtins" in parts:
        return not _EVALUATORS.isdisjoint(parts)
    return not _RUNNERS.isdisjoint(parts[:-1])


def _expect(kind: type, value: object) -> None:
    if type(value) is not kind:
        raise ValueError(f"expected a {kind.__name__}, got a {type(value).__name__}")


_SCALARS = (str, int, float, bool, bytes, type(None))


def _is_key(value: object) -> bool:
    """Return whether a value can be hashed without deep recursion."""
    values = value if type(value) is tuple else (value,)
    return all(type(v) in _SCALARS for v in values)
