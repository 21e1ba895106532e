"""A pickle reader that builds only plain data, tensors and arrays.

``pickle`` imports and calls whatever a file names. Here names are never imported: the opcodes run
on our own stack, and only :data:`CONSTRUCTORS` can be called. Every other object is an
:class:`Inert`, which discards its arguments, items and state. A :class:`Budget` limits what all
objects may take.
"""

import pickle
import pickletools
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .constructors import (
    CONSTRUCTORS,
    Inert,
    NumpyType,
    numpy_contents,
    numpy_to_tensor,
    runs_code,
)
from .limits import MAX_NAME, Budget, is_key, shallow_size


class RunsCodeError(ValueError):
    """A pickle calls a function that could run a program."""


def unpickle(
    file: BinaryIO,
    budget: Budget,
    *,
    load_storage: Callable[[tuple], object] | None = None,
    load_bytes: Callable[[bytes], object] | None = None,
) -> tuple[object, set[str]]:
    """Read one pickle.

    Args:
        file: a binary file at the start of the pickle, with ``read`` and ``readline``. It is left
            at the end of the pickle.
        budget: what the objects may take.
        load_storage: converts a persistent id to a :class:`Storage`; see :func:`storage_dtype`.
        load_bytes: reads a storage that is a whole file in bytes, as plain ``pickle`` writes it.

    Returns:
        The object, made of lists, tuples, sets, dicts, strings, bytes, numbers, None, dtypes,
        tensors and :class:`Inert`; and the names of all inert objects. Dicts keep only keys that
        are strings, numbers or None, and only values that are not inert.
        NumPy arrays in a dict or list become tensors. Nothing contains itself.

    Raises:
        RunsCodeError: the pickle calls a function that could run a program.
        Exception: any type, if the pickle is malformed or exceeds the budget.
    """
    machine = _Machine(budget, load_storage, load_bytes)
    result = machine.run(file)
    budget.check_expanded(result)
    return result, machine.inert


class _Global(Inert):
    """A function or class named in a pickle, with its constructor if it may be called."""

    __slots__ = ("constructor", "runs_code")

    def __init__(self, name: str, constructor: Callable | None):
        super().__init__(name)
        self.constructor = constructor
        self.runs_code = runs_code(name)


_OBJECT, _TENSOR = 400, 5000  # bytes that an object and a tensor cost
_OPCODES = {opcode.name: opcode for opcode in pickletools.opcodes}
_STEPS: dict[bytes, tuple[int, Callable | None, Callable]] = {}  # cost, argument reader, method


def _step(names: str, cost: int = 0):
    """Register a method of :class:`_Machine` for opcodes.

    ``cost``: bytes of the object that it adds, or more if it takes long.
    """

    def register(method: Callable) -> Callable:
        for name in names.split():
            opcode = _OPCODES[name]
            reader = opcode.arg and opcode.arg.reader
            _STEPS[opcode.code.encode("latin1")] = cost, reader, method
        return method

    return register


class _Machine:
    """The pickle machine: its stack, marks and memo."""

    def __init__(self, budget: Budget, load_storage, load_bytes):
        self.stack, self.marked, self.memo = [], [], {}
        self.unfilled = {}  # arrays whose contents are not set yet, by id
        self.tensors = {}  # arrays and the tensors made of them, by id
        self.globals = {}
        self.inert = set()
        self.budget = budget
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
        read, budget, code = file.read, self.budget, b""
        while code != pickle.STOP:
            code = read(1)
            if code not in _STEPS:
                raise ValueError(f"unsupported opcode {code!r}" if code else "it is cut off")
            cost, reader, step = _STEPS[code]
            if cost:
                budget.left -= cost  # as spend() does, without a call
                if budget.left < 0:
                    budget.spend(0)
            if reader is None:
                step(self)
            else:
                step(self, reader(file))
        return self._data(self.stack.pop())

    @_step("PROTO FRAME READONLY_BUFFER STOP")
    def _skip(self, *_) -> None:
        pass

    @_step("BININT1", cost=8)
    @_step("INT BININT BININT2 LONG LONG1 FLOAT BINFLOAT", cost=32)
    @_step("STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE", cost=64)
    @_step("BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8", cost=64)
    def _push(self, value: object) -> None:
        self.stack.append(value)

    @_step("MARK", cost=128)
    def _mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    @_step("POP_MARK")
    def _to_mark(self) -> list:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    @_step("POP")
    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    @_step("DUP")
    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    @_step("MEMOIZE", cost=80)
    def _memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    @_step("PUT BINPUT LONG_BINPUT", cost=80)
    def _put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    @_step("GET BINGET LONG_BINGET")
    def _get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    @_step("TUPLE", cost=112)
    def _tuple(self) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def to_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ValueError("a tuple lacks items")
        self.stack[-count:] = [items]

    @_step("LIST", cost=80)
    def _list(self) -> None:
        items = self._to_mark()
        self.stack.append(self._extend([], items))

    @_step("APPEND")
    def _append(self) -> None:
        item, target = self.stack.pop(), self.stack[-1]
        if type(target) is list:  # faster
            target.append(self._data(item))
        else:
            self._extend(target, (item,))

    @_step("APPENDS", cost=60)
    def _appends(self) -> None:
        items = self._to_mark()
        self._extend(self.stack[-1], items)

    @_step("DICT", cost=80)
    def _new_dict(self) -> None:
        items = self._to_mark()
        self.stack.append(self._set_items({}, items))

    @_step("SETITEM", cost=240)
    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(self.stack[-1], (key, value))

    @_step("SETITEMS", cost=100)
    def _update(self) -> None:
        items = self._to_mark()
        self._set_items(self.stack[-1], items)

    @_step("ADDITEMS", cost=60)
    def _add(self) -> None:
        items = self._to_mark()
        self._add_items(self.stack[-1], items)

    @_step("FROZENSET", cost=240)
    def _frozenset(self) -> None:
        items = self._to_mark()
        self.stack.append(self._add_items(set(), items))

    @_step("GLOBAL", cost=64)
    def _named(self, names: str) -> None:
        self.stack.append(self._global(*names.split(" ", 1)))

    @_step("STACK_GLOBAL", cost=64)
    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._global(module, name))

    @_step("REDUCE NEWOBJ")
    def _reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, args))

    @_step("NEWOBJ_EX")
    def _new_with_keywords(self) -> None:
        kwargs, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.budget.spend(shallow_size(kwargs) + shallow_size(args))
        self.stack.append(self._call(function, (*args, *kwargs.values())))

    @_step("INST", cost=64)
    def _instance(self, names: str) -> None:
        args = self._to_mark()
        self.stack.append(self._call(self._global(*names.split(" ", 1)), tuple(args)))

    @_step("OBJ")
    def _object(self) -> None:
        function, *args = self._to_mark()
        self.stack.append(self._call(function, tuple(args)))

    @_step("BUILD")
    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumpyType):
            target.order = state[1] if state[1] in ("<", ">") else "="
        elif type(target) is np.ndarray:
            self.stack[-1] = self._fill(target, state)

    @_step("BINPERSID", cost=1000)
    def _persistent(self) -> None:
        self.stack.append(self.load_storage(self.stack.pop()))

    def _data(self, value: object) -> object:
        """Convert an array to a tensor, or to Inert if its contents were never set."""
        if type(value) is not np.ndarray:
            return value
        if id(value) in self.unfilled:
            return Inert("numpy.ndarray")
        if id(value) not in self.tensors:
            self.budget.spend(_TENSOR)
            self.tensors[id(value)] = value, numpy_to_tensor(value)
        return self.tensors[id(value)][1]

    def _extend(self, target: object, items: Sequence) -> object:
        if _accepts(target, list):
            target.extend(map(self._data, items) if np.ndarray in map(type, items) else items)
        return target

    def _set_items(self, target: object, items: Sequence) -> object:
        if _accepts(target, dict):
            if len(items) % 2:
                raise ValueError("a dict lacks a value")
            remaining = iter(items)
            for key in remaining:
                value = self._data(next(remaining))
                if is_key(key) and not isinstance(value, Inert):
                    target[key] = value
        return target

    def _add_items(self, target: object, items: Iterable) -> object:
        if _accepts(target, set):
            target.update(filter(is_key, items))
        return target

    def _global(self, module: object, name: object) -> object:
        _expect(str, module)
        _expect(str, name)
        if len(module) + len(name) > MAX_NAME:
            raise ValueError(f"a class with a name of {len(module) + len(name)} characters")
        name = f"{_RENAMED.get(module, module)}.{name}"
        if name not in self.globals:
            self.globals[name] = _TORCH_DTYPES.get(name) or _Global(
                name, self.constructors.get(name)
            )
        return self.globals[name]

    def _call(self, function: object, args: tuple) -> object:
        _expect(tuple, args)
        if not isinstance(function, Inert):
            raise ValueError("it calls an object that is not a global")
        self.budget.spend(_OBJECT + 4 * sum(map(shallow_size, args)))
        constructor = None
        if type(function) is _Global:
            if function.runs_code:
                raise RunsCodeError(function.name)
            constructor = function.constructor
        result = Inert(function.name) if constructor is None else constructor(*args)
        if type(result) is Inert:
            self.inert.add(result.name)
        elif type(result) is Tensor:
            if result.nbytes > self.budget.left:
                raise ValueError(
                    f"a tensor has {result.numel():,} elements; the file does not hold that many"
                )
            self.budget.spend(_TENSOR + result.nbytes)
        return result

    def _dict(self, items: object = ()) -> dict:
        pairs = items.items() if type(items) is dict else items
        return self._set_items({}, [part for key, value in pairs for part in (key, value)])

    def _array(self, *_) -> np.ndarray:
        array = np.empty(0, "u1")
        self.unfilled[id(array)] = array
        return array

    def _fill(self, array: np.ndarray, state: tuple) -> object:
        """Set the contents of an array, only once: a view of it may exist afterwards."""
        shape, numpy_type, column_major, data = state[-4:]
        if not isinstance(numpy_type, NumpyType):
            return Inert("numpy.ndarray")
        self.budget.spend(_OBJECT + 4 * shallow_size(data))
        contents = numpy_contents(data, numpy_type)
        contents = contents.reshape(shape, order="F" if column_major else "C")
        del self.unfilled[id(array)]
        array.__setstate__((1, contents.shape, contents.dtype, False, contents.tobytes()))
        return array

    def _rebuild_from_type(self, function: Inert, _, args: tuple, __) -> object:
        return self._call(function, args)


_step("NONE")(lambda machine: machine.stack.append(None))
_step("NEWTRUE")(lambda machine: machine.stack.append(True))
_step("NEWFALSE")(lambda machine: machine.stack.append(False))
_step("EMPTY_TUPLE")(lambda machine: machine.stack.append(()))
_step("EMPTY_LIST", cost=80)(lambda machine: machine.stack.append([]))
_step("EMPTY_DICT", cost=80)(lambda machine: machine.stack.append({}))
_step("EMPTY_SET", cost=240)(lambda machine: machine.stack.append(set()))
_step("TUPLE1", cost=112)(lambda machine: machine.to_tuple(1))
_step("TUPLE2", cost=112)(lambda machine: machine.to_tuple(2))
_step("TUPLE3", cost=112)(lambda machine: machine.to_tuple(3))

_TORCH_DTYPES = {str(t): t for t in vars(torch).values() if isinstance(t, torch.dtype)}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in Python 2


def _expect(kind: type, value: object) -> None:
    if type(value) is not kind:
        raise ValueError(f"expected a {kind.__name__}, got a {type(value).__name__}")


def _accepts(target: object, kind: type) -> bool:
    """Return whether to add items to an object: an inert one discards them."""
    if type(target) is kind:
        return True
    if not isinstance(target, Inert):
        _expect(kind, target)
    return False
