"""JSON files: round trip, and files that are missing, not JSON, or cut off."""

import gc
import json

import pytest

from apa_det.errors import MissingFileError, UserError
from apa_det.utils.json_files import json_list, read_json, write_json

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


def test_archive(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match="not a JSON text file .* unpack it"):
        read_json(path)


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
