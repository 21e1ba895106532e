"""Read pickles made to run code, and pickles made to break the reader."""

import builtins
import os
import pickle
import struct
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from apa_det.checkpoint import load_checkpoint
from apa_det.errors import UserError

WATCHED = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"}
seen = []
watching = False


def watch(event, _):
    if watching and event in WATCHED:
        seen.append(event)


sys.addaudithook(watch)


@pytest.fixture
def load(tmp_path):
    """Return a function that loads bytes as a checkpoint, and asserts that nothing was run."""

    def load(data):
        global watching
        path = tmp_path / "file.pth"
        path.write_bytes(data)
        seen.clear()
        watching = True
        try:
            return load_checkpoint(str(path))
        finally:
            watching = False
            assert not seen
            assert not (tmp_path / "canary").exists()

    return load


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def call(function, *args, where=lambda call: {"model": call}, protocol=2):
    return pickle.dumps(where(Call(function, *args)), protocol)


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


TOUCH = "touch canary"
DEEP = 200_000  # levels of tuples: hash() recurses through them without a check
EVAL = "__import__('os').system('touch canary')"
# Handwritten opcodes; with each, pickle.loads creates the canary file.
OPCODES = {
    "global": b"cos\nsystem\n" + text(TOUCH) + b"\x85R.",
    "inst": b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\n" + text(TOUCH) + b"o.",
    "eval": b"cbuiltins\neval\n" + text(EVAL) + b"\x85R.",
    "python 2's eval": b"\x80\x02c__builtin__\neval\n" + text(EVAL) + b"\x85R.",
    "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "dotted name": b"\x80\x04"
    + text("torch")
    + text("serialization.os.system")
    + b"\x93"
    + text(TOUCH)
    + b"\x85R.",
    "dotted method": b"\x80\x04"
    + text("builtins")
    + text("eval.__call__")
    + b"\x93"
    + text(EVAL)
    + b"\x85R.",
    "names from the memo": b"\x80\x04"
    + text("system")
    + b"\x94"
    + text("os")
    + b"\x94"
    + b"h\x01h\x00\x93\x94"
    + text(TOUCH)
    + b"\x94h\x02h\x03\x85R.",
    "getattr of an import": b"cbuiltins\ngetattr\n"
    + b"cbuiltins\n__import__\n"
    + text("os")
    + b"\x85R"
    + text("system")
    + b"\x86R"
    + text(TOUCH)
    + b"\x85R.",
    "getattr of a module": b"cbuiltins\ngetattr\nctorch\nserialization\n"
    + text("os")
    + b"\x86R."
    + b"",
    "build calls setstate": b"carggparse\nNamespace\n".replace(b"gg", b"g")
    + b")R}"
    + text("__setstate__")
    + b"cos\nsystem\nsb"
    + text(TOUCH)
    + b"b.",
    "map": b"cbuiltins\nlist\ncbuiltins\nmap\ncos\nsystem\n(" + text(TOUCH) + b"l\x86R\x85R.",
    "popped": b"cos\nsystem\n" + text(TOUCH) + b"\x85R0}.",
    "after a key": b"}" + text("model") + b"cos\nsystem\n" + text(TOUCH) + b"\x85Rs.",
    "between marks": b"(((cos\nsystem\n" + text(TOUCH) + b"\x85R\x85t1}.",
}


@pytest.mark.parametrize("name", OPCODES)
def test_opcodes(name, load, tmp_path, monkeypatch):
    try:
        load(OPCODES[name])
    except UserError as error:
        assert "file.pth" in str(error)
    monkeypatch.chdir(tmp_path)
    pickle.loads(OPCODES[name])
    assert (tmp_path / "canary").exists() or name == "getattr of a module"
    (tmp_path / "canary").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "function",
    [os.system, os.popen, builtins.eval, builtins.exec, builtins.__import__, pickle.loads],
)
@pytest.mark.parametrize("protocol", range(6))
def test_hostile_calls_are_named(function, protocol, load):
    data = call(function, TOUCH, protocol=protocol)
    with pytest.raises(
        UserError, match=f"file.pth would call .*{function.__name__}.*Nothing was run: delete"
    ):
        load(data)


@pytest.mark.parametrize(
    "where",
    [
        lambda call: call,
        lambda call: {"model": {"weight": call}},
        lambda call: {"model": OrderedDict([("weight", torch.ones(2)), ("bias", [call])])},
        lambda call: {(1, call): 1},
        lambda call: Call(set, [call]),
        lambda call: Call(OrderedDict, [[call, 1]]),
        lambda call: Call(defaultdict, call),
        lambda call: Call(bytearray, call),
        lambda call: (
            Call(np.core.multiarray._reconstruct, call, (0,), b"b")
            if np.__version__ < "2"
            else Call(np._core.multiarray._reconstruct, call, (0,), b"b")
        ),
        lambda call: Call(torch._utils._rebuild_tensor_v2, call, 0, (1,), (1,), False, {}),
        lambda call: Call(torch._utils._rebuild_parameter, call, True, {}),
    ],
)
def test_calls_at_any_depth(where, load):
    with pytest.raises(UserError, match="would call"):
        load(call(os.system, TOUCH, where=where))


def test_calls_through_constructors(load):
    rebuild = torch._tensor._rebuild_from_type_v2
    with pytest.raises(UserError, match="would call"):
        load(call(rebuild, os.system, torch.Tensor, (TOUCH,), {}))
    inner = call(os.system, TOUCH)
    with pytest.raises(UserError, match="would call"):
        load(call(torch.storage._load_from_bytes, inner))
    nested = inner
    for _ in range(2):
        nested = call(torch.storage._load_from_bytes, nested, protocol=4)
        with pytest.raises(UserError, match="would call"):
            load(nested)
    for _ in range(50):
        nested = call(torch.storage._load_from_bytes, nested, protocol=4)
    with pytest.raises(UserError, match="nested too deeply|more data than the file holds"):
        load(nested)


def test_unknown_calls_are_dropped(load, caplog):
    caplog.set_level("INFO")
    data = pickle.dumps(
        {
            "model": {"weight": np.ones(2, "f4"), "path": Path("x"), "slice": slice(1)},
            "config": Call(dict.fromkeys, "ab"),
            "list": [1, Path("x"), 2],
        }
    )
    loaded = load(data)
    assert loaded.keys() == {"model", "list"}
    assert loaded["model"].keys() == {"weight"}
    assert loaded["list"][::2] == [1, 2]
    assert "pathlib" in caplog.text and "builtins.slice" in caplog.text


def test_cycles(load):
    assert load(b"\x80\x02]q\x00h\x00a0}.") == {}  # a list that contains itself, popped
    for data in (
        b"\x80\x02}q\x00" + text("model") + b"h\x00s.",  # a dict that contains itself
        b"\x80\x02}q\x00" + text("model") + b"h\x00s" + text("model") + b"h\x00s.",
        b"\x80\x02}" + text("model") + b"]q\x00)" + b"\x85" * 9 + b"h\x00\x86h\x00\x86as.",
    ):
        with pytest.raises(UserError, match="contains itself"):
            load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\x00" * 4096,
        b"\xff" * 100,
        b"\x80\x02h\x05.",  # a memo that was never written
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02(.",
        b"\x80\x021.",
        b"\x80\x02R.",
        b"\x80\x02NNR.",
        b"\x80\x02}NR.",
        b"\x80\x02}(Na.",
        b"\x80\x02](K\x01s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x05\x97.",  # a buffer out of band
        b"\x80\x02Pid\n.",
        b"\x80\x02NQ.",
        b"\x80\x02" + text("storage") + b"\x85Q.",
        b"\x80\x04\x8e" + b"\xff" * 8 + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x02B\xff\xff\xff\x7fx.",
        b"\x80\x02X\xff\xff\xff\xffx.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x04\x95" + b"\xff" * 8 + b".",
        b"\x80\x04K\x01K\x02\x93.",
        b"\x80\x02I" + b"1" * 5000 + b"\n.",
        b"\x80\x02K\x01.",
        b"\x80\x02].",
        b"\x80\x02)" + b"\x85" * DEEP + b"0K\x01.",
        b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.0",
        b"\x80\x02cbuiltins\nset\n])" + b"\x85" * DEEP + b"a\x85R.",
        b"\x80\x02" + b"(" * 10**5 + b".",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\xff\xff\xff\xff\x7f\x85R.",
    ],
    ids=range(39),
)
def test_malformed(data, load):
    try:
        assert load(data) == {}
    except UserError as error:
        assert "file.pth" in str(error) and "\n" not in str(error)


def array_state(shape, dtype="f4", data=b"\0" * 8):
    """A pickled NumPy array with a custom state."""

    class Array:
        def __reduce__(self):
            function, args, _ = np.zeros(2, "f4").__reduce__()
            return function, args, (1, shape, np.dtype(dtype), False, data)

    return pickle.dumps({"model": {"weight": Array()}})


def test_array_shapes_must_fit_their_data(load):
    assert torch.equal(load(array_state((1, 2)))["model"]["weight"], torch.zeros(1, 2))
    for state in (
        array_state((3,)),
        array_state((2**40, 2**40)),
        array_state((2,), "f8"),
        array_state((1,), data=b"\0"),
        array_state("x"),
        array_state((1,), data=7),
    ):
        with pytest.raises(UserError, match="damaged"):
            load(state)
    assert load(array_state((1,), "O", [Path("x")]))["model"] == {}
    assert load(array_state((1,), "S8"))["model"] == {}


def test_array_contents_are_set_once(load):
    """The memory behind a tensor never changes."""
    pickled = pickle.dumps(np.zeros(2, "f4"), 2)
    assert pickled.endswith(b"b.")
    state = pickled[pickled.index(b"(K\x01") : -1]
    with pytest.raises(UserError, match="damaged"):
        load(pickled[:-1] + state + b".")


def persistent(storage_class=b"ctorch\nFloatStorage\n", key="0", numel=2, size=(2,), offset=0):
    """A data.pkl record with one tensor."""
    pid = b"(" + text("storage") + storage_class + text(key) + text("cpu")
    integers = [b"\x8a\x09" + int(n).to_bytes(9, "little", signed=True) for n in (numel, *size)]
    pid += integers[0] + b"tQ"
    stride = b"K\x01" * len(size)
    return (
        b"\x80\x02}"
        + text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + pid
        + b"\x8a\x09"
        + int(offset).to_bytes(9, "little", signed=True)
        + b"("
        + b"".join(integers[1:])
        + b"t("
        + stride
        + b"t\x89}tRs."
    )


@pytest.fixture
def load_record(load, tmp_path):
    import zipfile

    def load_record(pickled, data=b"\0\0\x80\x3f\0\0\0\x40"):
        with zipfile.ZipFile(tmp_path / "made", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/data/0", data)
        return load((tmp_path / "made").read_bytes())

    return load_record


def test_tensor_in_its_storage(load_record):
    assert load_record(persistent())["w"].tolist() == [1.0, 2.0]
    assert load_record(persistent(size=(1,), offset=1))["w"].tolist() == [2.0]
    cuda = persistent(b"ctorch.cuda\nFloatStorage\n")
    assert load_record(cuda)["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(size=(3,)), "exceeds its storage"),
        (dict(offset=1), "exceeds its storage"),
        (dict(offset=-1), "invalid size"),
        (dict(size=(-1,)), "invalid size"),
        (dict(size=(2**62,)), "exceeds its storage"),
        (dict(numel=3), "wrong size"),
        (dict(numel=-2), "wrong size"),
        (dict(numel=2**62), "wrong size"),
        (dict(key="1"), "storage 1 is missing"),
        (dict(key="../data.pkl"), "is missing"),
        (dict(storage_class=b"ctorch\nDoubleStorage\n"), "wrong size"),
        (dict(storage_class=b"ctorch\nQInt8Storage\n"), "QInt8Storage"),
        (dict(storage_class=b"cos\nsystem\n"), "os.system"),
        (dict(storage_class=text("x")), "damaged"),
    ],
)
def test_tensor_beyond_its_storage(arguments, reason, load_record):
    with pytest.raises(UserError, match=reason):
        load_record(persistent(**arguments))
