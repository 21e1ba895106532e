"""JSON files: round trip, and files that are missing, not JSON, or cut off."""

import gc
import gzip
import io
import json
import resource
import time
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.errors import MissingFileError, UserError
from apa_det.utils.json_files import json_list, read_json, write_json
from apa_det.utils.json_stream import read_json_list

CONTENT = {"a": [1, -2.5e-7, True, False, None, 'x\u1234\n"y', [], {}], "b": {"c": float("inf")}}


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    write_json(CONTENT, path)
    assert read_json(path) == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    assert gc.isenabled()


def test_cut_off_anywhere(tmp_path):
    text = json.dumps(CONTENT)
    path = tmp_path / "x.json"
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(UserError, match="x.json is cut off.* line 1 column .* again"):
            read_json(path)


@pytest.mark.parametrize("text", ["[1, 2,, 3]", "{'a': 1}", "[1] [2]", "<html></html>"])
def test_not_json(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="x.json is not valid JSON .*line 1 column"):
        read_json(path)


def zipped(compression=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name.replace("_json", ".json")), data, compression)
    return buffer.getvalue()


TEXT = json.dumps([{"a": "é"}], ensure_ascii=False)
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "byte-order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "gzip": lambda text: gzip.compress(text.encode("utf-8-sig")),
    "zip": lambda text: zipped(a_json=text.encode(), notes=b"about"),
    "zip of macOS": lambda text: zipped(**{"a_json": text, "__MACOSX/._a_json": b"\xff"}),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding(name, tmp_path):
    path = tmp_path / "x"  # by content, not by name
    path.write_bytes(ENCODINGS[name](TEXT))
    assert read_json(path) == [{"a": "é"}]
    assert list(read_json_list(path, 1)) == list(read_json_list(path)) == [[{"a": "é"}]]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"PK\x03\x04\xff\xfe", "has corrupt gzip or zip data"),
        (zipped(a_json=TEXT)[:-9], "has corrupt gzip or zip data"),
        (zipped(), "is a zip archive of 0 .json files; it must have one. Unpack it"),
        (
            zipped(a_json="1", b_json="2"),
            r"is a zip archive of 2 .json files \(a.json, b.json\); it must have one",
        ),
        (gzip.compress(b"[1]", mtime=0)[:-9], "is cut off: the compressed data end too early"),
        (b"\xff\xff[1]", "is not a JSON text file"),
        ("[1".encode("utf-16")[:-1], "is cut off: in the middle of a character"),
        (b"[" * 100_000, "is not valid JSON .*nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "is not valid JSON .*a number is too long"),
    ],
)
def test_invalid_data(data, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    for read in (read_json, lambda path: list(read_json_list(path))):
        with pytest.raises(UserError, match=f"^{path} {message}") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_encrypted_archive(tmp_path):
    data = bytearray(zipped(a_json=TEXT))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match="is an encrypted zip archive.* Unpack it"):
        read_json(tmp_path / "x.json")


@given(st.binary(max_size=60), st.sampled_from(list(ENCODINGS)), st.data())
def test_damaged_file_is_a_user_error(tmp_path_factory, noise, name, data):
    """Any damage gives a UserError, or content that is JSON."""
    path = tmp_path_factory.mktemp("damaged") / "x.json"
    content = bytearray(ENCODINGS[name](TEXT))
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 9))] = noise
    path.write_bytes(content)
    for read in (read_json, lambda path: list(read_json_list(path))):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_missing(tmp_path):
    with pytest.raises(MissingFileError, match="x.json does not exist"):
        read_json(tmp_path / "x.json")
    with pytest.raises(MissingFileError, match="is a folder"):
        read_json(tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write .*x.json: "):
        write_json(CONTENT, tmp_path / "file" / "x.json")
    with pytest.raises(UserError, match="Cannot write .*x.json: "):
        with json_list(tmp_path / "file" / "x.json") as write:
            write({})


def test_json_list(tmp_path):
    path = tmp_path / "x.json"
    for records in ([], [{"a": 1}], [{"a": 1}, {"b": [2]}]):
        with json_list(path) as write:
            for record in records:
                write(record)
        assert read_json(path) == records
    with pytest.raises(KeyError):
        with json_list(path) as write:
            write({"c": 3})
            raise KeyError
    assert read_json(path) == records


def gzip_bomb(megabytes, start=b"["):
    """A gzip file of a text of spaces, made of one compressed block."""
    block = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = block.compress(start) + block.flush(zlib.Z_FULL_FLUSH)
    spaces = zlib.compressobj(9, zlib.DEFLATED, -15)
    repeated = spaces.compress(b" " * 10**6) + spaces.flush(zlib.Z_FULL_FLUSH)
    return data + repeated * megabytes


BOMBS = {
    "gzip": gzip_bomb(5_000),
    "gzip of several members": gzip.compress(b"[" + b" " * 20_000_000) * 10,
    "zip": zipped(zipfile.ZIP_DEFLATED, a_json="[" + " " * 150_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("read", [read_json, lambda path: [*read_json_list(path)]])
def test_archives_are_not_expanded_beyond_a_limit(name, read, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(BOMBS[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    far_more = r"x.json expands to more than \d+ MB.* unpack it|more than 67,108,864 characters"
    with pytest.raises(UserError, match=far_more) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_500_000


def test_compressible_archives_are_read(tmp_path):
    """Large ones up to 50 times their size, small ones up to 100 MB."""
    path = tmp_path / "x.json"
    content = [{"image_id": 1, "category_id": 2, "bbox": [0.0, 0.0, 1.0, 1.0]}] * 100_000
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    assert path.stat().st_size * 50 < 6_000_000
    assert read_json(path) == content
    assert sum(map(len, read_json_list(path))) == len(content)


def test_zip_with_another_size_in_its_directory(tmp_path):
    data = bytearray(zipped(zipfile.ZIP_DEFLATED, a_json="[1" + " " * 10**6 + "]"))
    size = data.index(b"PK\x01\x02") + 24
    data[size : size + 4] = (10).to_bytes(4, "little")
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match="x.json (has corrupt gzip or zip data|is cut off)"):
        read_json(tmp_path / "x.json")


def test_archive_in_an_archive(tmp_path):
    (tmp_path / "x.json").write_bytes(gzip.compress(gzip.compress(TEXT.encode())))
    with pytest.raises(UserError, match="x.json is not a JSON text file"):
        read_json(tmp_path / "x.json")
