"""Read files that would expand to far more than they hold; they are refused in little memory."""

import io
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch

from apa_det.checkpoint import load_checkpoint
from apa_det.checkpoint.limits import Budget
from apa_det.checkpoint.reading import read_torch_file
from apa_det.errors import UserError

PROTOCOL = b"\x80\x04"


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """Return a function that asserts that bytes are refused, for little time and memory.

    The memory of the process may grow by 1 GB.
    """
    monkeypatch.setattr("apa_det.checkpoint.limits._ALLOWANCE", 10**6)  # as in a large file

    def refuse(data, reason):
        path = tmp_path / "file.pth"
        path.write_bytes(data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        with pytest.raises(UserError, match=reason) as error:
            read_torch_file(str(path))
        assert time.process_time() - start < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000
        assert "file.pth" in str(error.value) and str(error.value).isprintable()

    return refuse


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def data(content):
    return b"B" + struct.pack("<I", len(content)) + content


def name(function):
    module, _, function = function.rpartition(".")
    return f"c{module}\n{function}\n".encode()


def archive(pickled, **storages):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for key, content in storages.items():
            file.writestr(f"archive/data/{key.removeprefix('_')}", content)
    return buffer.getvalue()


REBUILD = name("torch._utils._rebuild_tensor_v2")


def tensor_arguments(size, stride):
    """Opcodes of the arguments for a tensor of float32 in the storage 0 of two elements."""

    def integers(values):
        return b"(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little") for n in values) + b"t"

    storage = text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + b"K\x02tQ"
    return b"((" + storage + b"K\x00" + integers(size) + integers(stride) + b"\x89}t"


def tensor(size, stride):
    return REBUILD + tensor_arguments(size, stride) + b"R"


FAR_MORE = "far more data than the file holds"
DOUBLED = b"".join(b"]\x94(" + 2 * (b"h" + bytes([i])) + b"e" for i in range(100))
STRING = text("a" * 10**5) + b"\x94"
STORAGE = pickle.dumps({"a": 1}, 2)
LOADS = name("torch.storage._load_from_bytes")


def nested(levels, repeats):
    """A file that loads files that load files."""
    content = STORAGE
    for _ in range(levels):
        calls = b"h\x00h\x01R" * repeats
        content = PROTOCOL + LOADS + b"\x94" + data(content) + b"\x85\x94(" + calls + b"l."
    return content


BOMBS = {
    "lists that double": (PROTOCOL + b"]\x94" + DOUBLED + b".", f"{FAR_MORE}|nested too deeply"),
    "a list of one list": (
        PROTOCOL + b"((" + b"N" * 30_000 + b"l\x94" + b"h\x00" * 30_000 + b"l.",
        FAR_MORE,
    ),
    "a string repeated": (PROTOCOL + b"(" + STRING + b"h\x00" * 10**5 + b"l.", FAR_MORE),
    "a string copied": (
        PROTOCOL
        + b"("
        + data(b"a" * 10**5)
        + b"\x94"
        + name("builtins.bytearray")
        + b"\x94"
        + b"h\x01h\x00\x85R0" * 10**5
        + b"l.",
        FAR_MORE,
    ),
    "a device name that doubles": (
        PROTOCOL
        + name("torch.device")
        + b"\x94"
        + text("cpu")
        + b"\x94"
        + b"".join(
            b"h\x00h" + bytes([i]) * 1 + b"h" + bytes([i]) + b"\x86R\x94" for i in range(1, 90)
        )
        + b".",
        "invalid device",
    ),
    "a huge bytearray": (
        PROTOCOL + name("builtins.bytearray") + b"\x8a\x05\x00\x00\x00\x80\x01\x85R.",
        "damaged",
    ),
    "a big bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 6 << 30) + b"x.", "damaged"),
    "files in files": (nested(4, 1000), f"{FAR_MORE}|nested too deeply"),
    "one file many times": (nested(1, 30_000), FAR_MORE),
    "files in files in files": (nested(30, 1), f"{FAR_MORE}|nested too deeply"),
    "a tuple that is deep": (PROTOCOL + b")" + b"\x85" * 10**4 + b".", "nested too deeply"),
    "a dict that is deep": (
        PROTOCOL + b"}" + (text("a") + b"}") * 100 + b"s" * 100 + b".",
        "nested too deeply",
    ),
    "a list of itself": (PROTOCOL + b"]\x94h\x00a.", "contains itself"),
    "marks": (PROTOCOL + b"(" * 10**6, FAR_MORE),
    "sets": (PROTOCOL + b"\x8f" * 10**6, FAR_MORE),
    "a class of a long name": (
        PROTOCOL + text("a" * 5000) + text("b") + b"\x93.",
        "5001 characters",
    ),
    "a long key": (PROTOCOL + b"}" + text("a" * 5000) + b"Ns.", "a name of 5000 characters"),
    "a long number": (PROTOCOL + b"\x8b\x00\x01\x00\x00" + bytes(256) + b".", "unsupported opcode"),
    "a tensor expanded": (
        archive(PROTOCOL + tensor([2**35], [0]) + b".", _0=bytes(8)),
        "34,359,738,368 elements; the file does not hold that many",
    ),
    "a tensor expanded twice": (
        archive(PROTOCOL + tensor([2**18, 2**18], [0, 0]) + b".", _0=bytes(8)),
        "does not hold that many",
    ),
    "tensors expanded a little": (
        archive(PROTOCOL + b"(" + tensor([2**20], [0]) * 50 + b"l.", _0=bytes(8)),
        "does not hold that many",
    ),
    "a tensor of many dimensions": (
        archive(PROTOCOL + tensor([1] * 65, [1] * 65) + b".", _0=bytes(8)),
        "65 dimensions",
    ),
    "one tensor in a list of lists": (
        archive(
            PROTOCOL
            + b"("
            + tensor([2**16], [0])
            + b"\x94"
            + (b"(" + b"h\x00" * 100 + b"l")
            + b"l.",
            _0=bytes(8),
        ),
        FAR_MORE,
    ),
    "many tensors": (
        archive(
            PROTOCOL
            + REBUILD
            + b"\x94"
            + tensor_arguments([1], [1])
            + b"\x94("
            + b"h\x00h\x01R" * 10**5
            + b"l.",
            _0=bytes(8),
        ),
        FAR_MORE,
    ),
    "an array in another order many times": (
        pickle.dumps([np.asfortranarray(np.zeros((300, 300)))] * 10**5, 4),
        FAR_MORE,
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb, refuse):
    refuse(*BOMBS[bomb])


def test_equal_hashes_do_not_slow_dicts(tmp_path):
    """Python's integers k * (2**61 - 1) all have the hash 0."""
    keys = b"".join(
        b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(10**5)
    )
    (tmp_path / "file.pth").write_bytes(PROTOCOL + b"}(" + keys + b"u.")
    start = time.process_time()
    assert load_checkpoint(str(tmp_path / "file.pth")) == {0: None}
    assert time.process_time() - start < 10


def test_names_and_counts_of_safetensors(refuse):
    shape = ",".join(["999999999999999999"] * 10**5)
    for entry, reason in (
        (f'{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}', "w has 100000 dimensions"),
        ("[" * 10**6, "damaged"),
    ):
        header = f'{{"w":{entry}}}'.encode()
        refuse(struct.pack("<Q", len(header)) + header + bytes(4), reason)


def test_legacy_storages_are_not_larger_than_the_file(refuse):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(5)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert content.count(b"K\x05") == 2  # the number of elements, and the shape
    refuse(content.replace(b"K\x05", b"\x8a\x05\x00\x00\x00\x00\x10"), "larger than the file")


def test_real_files_are_within_the_limits(tmp_path):
    """A large part of the budget is left, whatever the file is mostly made of."""
    record = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}
    rng = np.random.default_rng(0)
    shared = torch.randn(1000)
    contents = {
        "integer boxes": [
            {"image_id": 1, "instances": [{**record, "bbox": [1, 2, 3, 4]} for _ in range(10**4)]}
        ],
        "float boxes": [{**record, "bbox": rng.random(4).tolist()} for _ in range(10**4)],
        "numbers of NumPy": list(rng.random(10**4)),
        "small arrays": [rng.random(4) for _ in range(1000)],
        "tied weights": {f"head.{i}.weight": shared for i in range(100)},
        "small tensors": {f"layer{i}.lambda_param": torch.ones(1) for i in range(100)},
    }
    for content in contents.values():
        for protocol in (2, 4):
            data = pickle.dumps(content, protocol)
            (tmp_path / "file.pth").write_bytes(data)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("apa_det.checkpoint.limits._ALLOWANCE", 10**7)
                read_torch_file(str(tmp_path / "file.pth"))


def expanded_size(value):
    """Return the smallest budget, in bytes, that a value is within."""
    low, high = 0, 10**7
    while low < high:
        middle = (low + high) // 2
        budget = Budget(0)
        budget._total = middle
        try:
            budget.check_expanded(value)
            high = middle
        except ValueError as error:
            assert FAR_MORE in str(error)
            low = middle + 1
    return low


def test_expanded_size_counts_shared_objects_each_time():
    leaf = ["a" * 1000]
    size = expanded_size(leaf)
    assert 1000 <= size < 2000
    assert 10 * size <= expanded_size([leaf] * 10) < 11 * size
    assert expanded_size({"a": (leaf, leaf)}) >= 2 * size
    assert 400 < expanded_size(torch.zeros(10, 10)) < 20_000
    assert expanded_size([torch.zeros(1)] * 100) > 500_000
    assert expanded_size([torch.zeros(1).expand(1000)]) > 4000
    assert expanded_size([[]] * 100) > 6400


def test_levels():
    deep = ["x"]
    for _ in range(64):
        deep = [deep]
    Budget(0).check_expanded(deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        Budget(0).check_expanded([deep])
    chain = ["x"] * 9
    shallow = [chain := [chain] + ["x"] * 9 for _ in range(100)]  # level by level, shared
    with pytest.raises(ValueError, match="nested too deeply"):
        Budget(0).check_expanded(shallow)


def test_budget():
    budget = Budget(100)
    budget.spend(budget.left)
    with pytest.raises(ValueError, match=FAR_MORE):
        budget.spend(1)
    budget = Budget(100)
    budget.spend_nested(200)
    with pytest.raises(ValueError, match=FAR_MORE):
        budget.spend_nested(1)
