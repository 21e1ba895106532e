import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.text import file_name, has_control, printable, write_csv


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a giraffe, été 象", "a giraffe, été 象"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r\t", r"a\nb\r\t"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # written from right to left
        ("\x9b31m", r"\x9b31m"),  # a terminal's control sequence in one character
        ("\udcff", r"\udcff"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 77 + "..."),
        (KeyError("a"), "'a'"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected


@given(st.text())
def test_any_text_is_a_file_name(text):
    for name in (file_name(text), file_name(text * 50, 30)):
        assert name not in ("", ".", "..") and name.isprintable() and not set("/\\:") & set(name)
        assert len(name.encode()) <= 201
    assert file_name(file_name(text)) == file_name(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("../a", ".._a"),
        ("..", "_.."),
        ("nul.txt", "_nul.txt"),
        ("a\x00b\n", "a_b_"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
    ],
)
def test_file_names(text, expected):
    assert file_name(text) == expected


def test_control_characters():
    for text in ("a\nb", "\x1b[31m", "\x9b", "\u202ea", "\ud800", "\x00"):
        assert has_control(text)
    for text in ("giraffe", "نیم\u200cفاصله", "👩\u200d🚀", "=1+1", "../x"):
        assert not has_control(text)


@given(st.text(), st.integers(3, 20))
def test_any_text_is_printable(text, max_length):
    result = printable(text, max_length)
    assert result.isprintable() and len(result) <= max_length
    if text.isprintable() and len(text) <= max_length:
        assert result == text


def test_long_text_is_not_read_whole():
    class Long(str):
        def __iter__(self):
            raise AssertionError

    assert len(printable(Long("x" * 10**8), 100)) == 100


@given(st.lists(st.lists(st.text() | st.integers() | st.floats(), min_size=2, max_size=2)))
def test_csv_has_no_formulas(rows):
    file = io.StringIO(newline="")
    write_csv(file, ["=name", "value"], rows)
    file.seek(0)
    header, *lines = csv.reader(file)
    assert header == ["'=name", "value"]
    for row, line in zip(rows, lines, strict=True):
        for value, cell in zip(row, line, strict=True):
            assert cell.removeprefix("'") == str(value).removeprefix("'")
            if isinstance(value, str):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            else:
                assert cell == str(value)
