"""Read files of every format: intact, damaged and fabricated."""

import io
import pickle
import re
import struct
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apa_det.checkpoint import load_checkpoint
from apa_det.errors import MissingFileError, UserError


def can_save(dtype):
    try:
        torch.save(torch.zeros(1, dtype=dtype), io.BytesIO())
    except KeyError:  # torch < 2.6 and uint16
        return False
    return True


def tensors():
    base = torch.arange(12.0)
    state = OrderedDict(
        (str(dtype), torch.tensor([[0, 1, 2], [3, 100, 5]]).to(dtype))
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
            torch.complex64,
            torch.uint16,
        )
        if can_save(dtype)
    )
    state["scalar"] = torch.tensor(7)
    state["empty"] = torch.empty(0, 3)
    state["transposed"] = base.view(3, 4).T
    state["part"] = base[2:9:3]
    state["parameter"] = torch.nn.Parameter(torch.randn(3))
    state["expanded"] = torch.tensor([1.5]).expand(4)
    return state


def training_file():
    """A checkpoint as training frameworks save it: tensors beside other objects."""
    return {
        "state_dict": tensors(),
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "meta": {"config": Namespace(lr=1), "epoch": 24, "time": "now", "seeds": (1, 2, None)},
        "hook": Namespace(buffer=torch.ones(3)),
        "best": np.float64(29.125),
        "milestones": Counter([16, 22]),
        "classes": {"a", "b"},
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
        "size": torch.Size([1, 2]),
        "raw": b"\x00\xff",
        "array": np.arange(6, dtype="i4").reshape(2, 3),
    }


def save(path, obj, format="zip"):
    if format == "pickle":
        path.write_bytes(pickle.dumps(obj))
    else:
        torch.save(obj, path, _use_new_zipfile_serialization=format == "zip")
    return str(path)


def assert_same(actual, expected):
    expected = expected.detach()
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual, expected) and not actual.requires_grad


@pytest.mark.parametrize("format", ["zip", "legacy", "pickle"])
def test_pytorch(format, tmp_path, caplog):
    caplog.set_level("INFO")
    expected = training_file()
    loaded = load_checkpoint(save(tmp_path / "file.pth", expected, format))
    assert loaded["state_dict"].keys() == expected["state_dict"].keys()
    for name, tensor in expected["state_dict"].items():
        assert_same(loaded["state_dict"][name], tensor)
    assert_same(loaded["optimizer"]["state"][0]["exp_avg"], torch.ones(2))
    assert loaded["optimizer"]["param_groups"] == [{"lr": 0.1}]
    assert loaded["meta"] == {"epoch": 24, "time": "now", "seeds": (1, 2, None)}
    assert loaded["best"] == 29.125 and type(loaded["best"]) is float
    assert loaded["milestones"] == {16: 1, 22: 1}
    assert loaded["classes"] == {"a", "b"}
    assert loaded["dtype"] is torch.float16
    assert loaded["device"] == "cuda:1" and loaded["size"] == (1, 2) and loaded["raw"] == b"\0\xff"
    assert_same(loaded["array"], torch.arange(6, dtype=torch.int32).view(2, 3))
    assert "hook" not in loaded
    assert "file.pth: dropped objects" in caplog.text and "argparse.Namespace" in caplog.text


@pytest.mark.parametrize("format", ["zip", "legacy"])
def test_shared_storage(format, tmp_path):
    state = load_checkpoint(save(tmp_path / "file.pth", tensors(), format))
    state["transposed"][2, 0] = 100  # the third element of the base
    assert state["part"].tolist() == [100, 5, 8]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">f8", "|u1", "|b1", "<f2"])
def test_arrays(protocol, dtype, tmp_path):
    arrays = {
        "rows": np.arange(6).reshape(2, 3).astype(dtype),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "us"}, protocol))
    loaded = load_checkpoint(str(path))
    assert loaded["__author__"] == "us"
    for name, array in arrays.items():
        assert_same(loaded["model"][name], torch.from_numpy(array.astype(dtype.lstrip("<>"))))


def test_pickle_of_python_2(tmp_path):
    """Its strings are bytes, which detectron2 reads as latin-1."""
    path = tmp_path / "file.pkl"
    path.write_bytes(
        b"\x80\x02}U\x05blobs}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + struct.pack("<2f", 1.5, -2.5)
        + b"tbss."
    )
    assert load_checkpoint(str(path))["blobs"]["conv1_w"].tolist() == [1.5, -2.5]


def rewrite(path, change):
    """Change the records of a zip archive, a list of (name, bytes)."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in change(records):
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())


def test_other_byte_order(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"w": torch.tensor([1.0, 2.0]), "z": torch.tensor([1 + 2j])}, path)
    here, there = sys.byteorder, {"little": "big", "big": "little"}[sys.byteorder]

    def swap(records):
        for name, data in records:
            if name.endswith("byteorder"):
                data = there.encode()
            elif "/data/" in name:
                data = np.frombuffer(data, "f4").byteswap().tobytes()
            yield name, data

    rewrite(path, swap)
    loaded = load_checkpoint(str(path))
    assert loaded["w"].tolist() == [1, 2] and loaded["z"].tolist() == [1 + 2j]

    legacy = save(tmp_path / "old.pth", {"w": torch.tensor([1.0, 2.0])}, "legacy")
    data = (tmp_path / "old.pth").read_bytes()
    storage = np.array([1, 2], "f4")
    data = data.replace(storage.tobytes(), storage.byteswap().tobytes())
    flags = {"little": b"\x88", "big": b"\x89"}
    entry = re.compile(b"(little_endianq.)" + re.escape(flags[here]), re.S)
    data, count = entry.subn(lambda match: match[1] + flags[there], data)
    assert count == 1
    (tmp_path / "old.pth").write_bytes(data)
    assert load_checkpoint(legacy)["w"].tolist() == [1, 2]


def renamed(old, new):
    return lambda records: [(name.replace(old, new), data) for name, data in records]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda r: [*r, ("../evil", b"")], "'../evil'"),
        (lambda r: [*r, ("/etc/passwd", b"")], "'/etc/passwd'"),
        (lambda r: [*r, ("file/../../evil", b"")], "evil'"),
        (lambda r: [*r, ("file/data/..\\evil", b"")], "evil'"),
        (lambda r: [*r, ("file//data.pkl", b"")], "data.pkl'"),
        (lambda r: [*r, ("other/data.pkl", r[0][1])], "'other/data.pkl'"),
        (lambda r: [*r, ("file/data.pkl", r[0][1])], "duplicate zip records"),
        (lambda r: [*r, ("file/constants.pkl", b"")], "TorchScript"),
        (lambda r: [("/" + name, data) for name, data in r], "record"),
        (lambda r: [(name.partition("/")[2], data) for name, data in r], "record|did not write"),
        (renamed("data.pkl", "data2.pkl"), "torch.save did not write"),
        (renamed("data/0", "data/zero"), "storage 0 is missing"),
        (lambda r: [(n, b"middle" if "byteorder" in n else d) for n, d in r], "byte order"),
        (lambda r: [(n, d[:-1] if "/data/" in n else d) for n, d in r], "wrong size"),
        (lambda r: [(n, b"" if "/data/" in n else d) for n, d in r], "wrong size"),
        (lambda r: [], "file.pth"),
    ],
)
def test_odd_archives(change, reason, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"model": {"w": torch.ones(5)}}, path)
    rewrite(path, change)
    with pytest.raises(UserError, match=reason):
        load_checkpoint(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]


def test_compressed_archive(tmp_path):
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file/data.pkl", pickle.dumps({}))
        archive.writestr("file/data/0", bytes(10**7))
    with pytest.raises(UserError, match="compressed zip record 'file/data.pkl'"):
        load_checkpoint(str(path))


def test_overlapping_records(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"w": torch.ones(10**4)}, path)
    data = path.read_bytes()
    directory = data.rindex(b"PK\x01\x02")
    first = data.index(b"PK\x01\x02")
    # Make the central directory claim that a small record is as long as the file
    entry = next(i for i in range(first, directory) if data[i:].startswith(b"PK\x01\x02"))
    size = struct.pack("<2I", len(data), len(data))
    path.write_bytes(data[: entry + 20] + size + data[entry + 28 :])
    with pytest.raises(UserError, match="file.pth"):
        load_checkpoint(str(path))


def test_not_a_file(tmp_path):
    with pytest.raises(MissingFileError, match="Checkpoint not found: .*none.pth"):
        load_checkpoint(str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="Cannot read the checkpoint .*: Is a directory"):
        load_checkpoint(str(tmp_path))


def test_not_a_state_dict(tmp_path):
    for obj, kind in [([torch.ones(2)], "list"), (torch.ones(2), "Tensor")]:
        with pytest.raises(UserError, match=f"{kind} instead of a dict of tensors"):
            load_checkpoint(save(tmp_path / "file.pth", obj))
    with pytest.raises(UserError, match="argparse.Namespace instead of a dict.*state_dict"):
        load_checkpoint(save(tmp_path / "file.pth", Namespace()))
    with pytest.raises(UserError, match="Linear instead of a dict.*state_dict"):
        load_checkpoint(save(tmp_path / "file.pth", torch.nn.Linear(2, 2), "legacy"))


FORMATS = ["zip", "legacy", "pickle", "safetensors"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small checkpoint in each format."""
    folder = tmp_path_factory.mktemp("files")
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    contents = {"state_dict": state, "meta": {"args": Namespace(a=1), "epoch": 1}}
    for format in FORMATS[:2]:
        save(folder / format, contents, format)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    (folder / "pickle").write_bytes(pickle.dumps({"model": arrays}))
    header = (
        b'{"b":{"dtype":"I64","shape":[2],"data_offsets":[24,40]},'
        b'"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    )
    data = b"".join(state[name].numpy().tobytes() for name in state)
    (folder / "safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return {format: (folder / format).read_bytes() for format in FORMATS}


def load_or_refuse(folder, data):
    path = folder / "damaged.pth"
    path.write_bytes(data)
    try:
        return load_checkpoint(str(path))
    except UserError as error:
        assert "damaged.pth" in str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize("format", FORMATS)
def test_truncated(format, files, tmp_path):
    data = files[format]
    assert load_or_refuse(tmp_path, data) is not None
    for end in range(0, len(data), 1 + len(data) // 300):
        assert load_or_refuse(tmp_path, data[:end]) is None


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("format", FORMATS)
def test_damaged(format, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    data = files[format]

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.tuples(st.integers(0, len(data) - 1), st.binary(max_size=4), st.integers(0, 4)),
            min_size=1,
            max_size=4,
        )
    )
    def check(changes):
        damaged = data
        for position, new, length in changes:
            damaged = damaged[:position] + new + damaged[position + length :]
        loaded = load_or_refuse(folder, damaged)
        assert loaded is None or isinstance(loaded, dict)

    check()
