"""Reading a JSON list in chunks, from valid, corrupt and truncated files."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apa_det.errors import MissingFileError, UserError
from apa_det.utils.json_stream import UnexpectedJSON, read_json_list, read_json_tables

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("json_stream") / "results.json"


def read(path, block):
    return [record for records in read_json_list(path, block) for record in records]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(JSON | st.dictionaries(st.text(), JSON, max_size=4), max_size=12),
    st.sampled_from([1, 2, 7, 50, 10**6]),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.booleans(),
)
def test_any_list_and_block_size(tmp_path_factory, records, block, indent, ascii_, zipped):
    path = tmp_path_factory.mktemp("any") / "results.json"
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_)
    data = text.encode("utf-8", "surrogatepass" if ascii_ else "replace")
    path.write_bytes(gzip.compress(data) if zipped else data)
    if not ascii_:
        records = json.loads(data.decode())
    assert read(path, block) == records


def test_is_read_in_chunks(file):
    records = [{"image_id": i, "parts": [{"a": "}, {"}, {"b": 1}]} for i in range(1000)]
    file.write_text(json.dumps(records))
    chunks = list(read_json_list(file, 4096))
    assert len(chunks) > 5 and max(map(len, chunks)) < 200
    assert [record for chunk in chunks for record in chunk] == records


@pytest.mark.parametrize("block", [16, 1000, 10**6])
def test_file_cut_off_anywhere_is_an_error(file, block):
    text = json.dumps([{"image_id": i, "score": -0.5e-7, "ok": True, "t": "é"} for i in range(9)])
    for end in range(len(text)):
        file.write_text(text[:end])
        with pytest.raises(UserError, match="cut off|contains nothing") as error:
            list(read_json_list(file, block))
        assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    file.write_bytes('[{"t": "é"}'.encode()[:-3])
    with pytest.raises(UserError, match="cut off: in the middle of a character"):
        list(read_json_list(file, block))


def test_number_of_complete_records_in_a_cut_off_file(file):
    file.write_text(json.dumps([{"image_id": i} for i in range(50)])[:-5])
    with pytest.raises(UserError, match="after about 49 complete records"):
        list(read_json_list(file, 100))


@pytest.mark.parametrize("end", [5, 60, -4])
def test_gzip_that_is_cut_off(file, end):
    file.write_bytes(
        gzip.compress(json.dumps([{"image_id": i} for i in range(999)]).encode())[:end]
    )
    with pytest.raises(UserError, match="cut off: the compressed data end too early"):
        list(read_json_list(file))


def test_corrupt_gzip(file):
    data = bytearray(gzip.compress(json.dumps(list(range(999))).encode()))
    data[40:60] = b"x" * 20
    file.write_bytes(data)
    with pytest.raises(UserError, match="corrupt gzip"):
        list(read_json_list(file))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "contains nothing; expected a JSON list"),
        (b'{"annotations": []}', "contains a JSON object; expected a JSON list"),
        (b"image_id,score", "contains text that is not JSON; expected a JSON list"),
        (b"[{'a': 1}, {'b': 2}, {'c': 3}]", r"JSON at record 0 \(counted from 0\)"),
        (
            b'[{"a": 1}, {"a": 2} {"a": 3}]',
            r"JSON at record 1 \(counted from 0\): no comma",
        ),
        (b'[{"a": 1}, {"a": yes}, {"a": 3}]', r"JSON at record 1 \(counted from 0\)"),
        (b'[{"a": 1},]', r"JSON at record 1 \(counted from 0\)"),
        (b"[1, 2]]", "more text after the end of its list"),
        (b"\xff\xff[1]", "not a JSON text file"),
    ],
)
@pytest.mark.parametrize("block", [8, 10**6])
def test_not_a_json_list(file, content, message, block):
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_json_list(file, block))


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.json does not exist"):
        list(read_json_list(tmp_path / "nowhere.json"))
    with pytest.raises(MissingFileError, match="is a folder"):
        list(read_json_list(tmp_path))


def test_record_without_end(file, monkeypatch):
    monkeypatch.setattr("apa_det.utils.json_stream._MAX_RECORD", 1000)
    file.write_text('[{"a": 1}, {"b": [' + "1, " * 5000)
    with pytest.raises(UserError, match="at record 1 .*it has more than 1,000 characters"):
        list(read_json_list(file, 100))


def joined_tables(path, tables, **kwargs) -> dict:
    content = {}
    for key, value in read_json_tables(path, tables, **kwargs):
        if key in tables and isinstance(value, list):
            content.setdefault(key, []).extend(value)
        else:
            content[key] = value
    return content


RECORDS = st.lists(st.dictionaries(st.text('ab}], {["\\é', max_size=4), JSON, max_size=3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.dictionaries(st.sampled_from(["a", "b", "c"]), RECORDS | JSON, min_size=1),
    style=st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}]),
    block=st.integers(1, 40),
    cut=st.floats(0, 1),
    garbage=st.sampled_from(["", "]", "}", ",", "{", '"', "x"]),
)
def test_tables_like_json_loads(content, style, block, cut, garbage, tmp_path):
    """The same content, or an error for text that json does not accept either."""
    path = tmp_path / "x.json"
    text = json.dumps(content, **style)
    path.write_text(text)
    assert joined_tables(path, ["a", "b"], block=block) == content
    at = round(cut * len(text))
    path.write_text(text[:at] + garbage + text[at + 1 :])
    try:
        expected = json.loads(path.read_text(), object_pairs_hook=list)
        if type(expected) is not list or len({key for key, _ in expected}) < len(expected):
            raise ValueError
    except (ValueError, TypeError):
        with pytest.raises(UnexpectedJSON):
            joined_tables(path, ["a", "b"], block=block)
    else:
        try:
            assert joined_tables(path, ["a", "b"], block=block) == json.loads(path.read_text())
        except UnexpectedJSON:
            assert not expected  # an empty object is left to json


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": [{},]}', '{"a": 1} 2', '{"a": 1, "a": 2}'])
def test_text_that_is_left_to_json(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UnexpectedJSON):
        joined_tables(tmp_path / "x.json", ["a"])


def test_edited_records(tmp_path):
    records = [{"n": i, "s": "x"} for i in range(50)]
    (tmp_path / "x.json").write_text(json.dumps({"a": records, "b": [{"s": "x"}]}))
    content = joined_tables(
        tmp_path / "x.json", ["a"], edit=lambda text: text.replace('"x"', '"yy"'), block=100
    )
    assert [r["n"] for r in content["a"]] == [*range(50)]
    assert {r["s"] for r in content["a"][:40]} == {"yy"}
    assert content["b"] == [{"s": "x"}]
