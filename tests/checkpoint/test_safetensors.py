"""Read safetensors files that are written by hand after the format's specification."""

import json
import struct

import pytest
import torch

from apa_det.checkpoint import load_checkpoint
from apa_det.errors import UserError


def write(path, header, data, header_size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if header_size is None else header_size
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return str(path)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_dtype(tmp_path):
    values = torch.tensor([[0, 1, 2], [3, 100, 5]])
    dtypes = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype in dtypes.items():
        part = bytes(values.to(dtype).contiguous().view(torch.uint8).flatten().tolist())
        header[name] = entry(name, [2, 3], len(data), len(data) + len(part))
        data += part
    header["scalar"] = entry("F32", [], len(data), len(data) + 4)
    header["empty"] = entry("F32", [0, 3], len(data) + 4, len(data) + 4)
    data += struct.pack("<f", 1.5)
    header = dict(reversed(header.items()))  # the order does not matter
    loaded = load_checkpoint(write(tmp_path / "file.safetensors", header, data))
    assert loaded.keys() == {*dtypes, "scalar", "empty"}
    for name, dtype in dtypes.items():
        assert loaded[name].dtype == dtype and torch.equal(loaded[name], values.to(dtype))
    assert loaded["scalar"].item() == 1.5 and loaded["empty"].shape == (0, 3)


def test_spaces_after_the_header(tmp_path):
    header = json.dumps({"w": entry("U8", [1], 0, 1)}).encode() + b"   "
    loaded = load_checkpoint(write(tmp_path / "file.safetensors", header, b"\x07"))
    assert loaded["w"].tolist() == [7]


@pytest.mark.parametrize(
    "header, data, reason",
    [
        ({"w": entry("F32", [2], 0, 8)}, b"\0" * 7, "truncated within w"),
        ({"w": entry("F32", [2], 0, 8)}, b"\0" * 9, "bytes after the last"),
        ({"w": entry("F32", [3], 0, 8)}, b"\0" * 8, "data_offsets of w"),
        ({"w": entry("F32", [2], 4, 12)}, b"\0" * 12, "data_offsets of w"),
        ({"w": entry("F32", [2], 8, 0)}, b"\0" * 8, "data_offsets of w"),
        ({"w": entry("F32", [-2], 0, 8)}, b"\0" * 8, "invalid shape or offset"),
        ({"w": entry("F32", [True], 0, 4)}, b"\0" * 4, "invalid shape or offset"),
        ({"w": entry("F32", [2**62, 4], 0, 0)}, b"", "data_offsets of w"),
        ({"w": entry("F4", [2], 0, 1)}, b"\0", "dtype F4 of w"),
        ({"w": entry("F32", "2", 0, 8)}, b"\0" * 8, "invalid shape or offset"),
        ({"w": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "data_offsets"),
        ({"w": 3}, b"", "not a checkpoint"),
        (
            {"v": entry("F32", [1], 0, 4), "w": entry("F32", [1], 0, 4)},
            b"\0" * 4,
            "data_offsets of w",
        ),
        (
            b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"\0",
            "duplicate names",
        ),
        (b'{"w":', b"", "not a checkpoint"),
        (b'{"w":' + b"[" * 200_000, b"", "not a checkpoint"),
        (b'{"w":"\xff"}', b"", "not a checkpoint"),
    ],
)
def test_broken(header, data, reason, tmp_path):
    with pytest.raises(UserError, match=f"file.safetensors .*{reason}"):
        load_checkpoint(write(tmp_path / "file.safetensors", header, data))


def test_header_longer_than_the_file(tmp_path):
    path = write(tmp_path / "file.safetensors", {}, b"", header_size=2**62)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)
