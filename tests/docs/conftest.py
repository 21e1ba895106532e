"""The pages of the documentation, their code blocks, and the commands in them."""

import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def check_docs() -> SimpleNamespace:
    """scripts/check_docs.py, which reads the commands and runs them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        return SimpleNamespace(**runpy.run_path(str(SCRIPTS / "check_docs.py")))


@pytest.fixture(scope="session")
def pages(check_docs) -> dict[str, str]:
    """The text of each page, by its path in the repository."""
    return check_docs.pages()


@pytest.fixture(scope="session")
def blocks(check_docs):
    """Returns the fenced blocks of a language in a text."""
    return check_docs.blocks


@pytest.fixture(scope="session")
def commands(check_docs):
    """Returns the shell commands in a text, each as a list of words."""

    def split(text: str) -> list[list[str]]:
        lines = [command.line for command in check_docs.commands("a page", text)]
        return [argv for line in lines for argv in joined(shlex.split(line))]

    return split


def joined(words: list[str]) -> Iterator[list[str]]:
    """Yield the commands that && joins."""
    while "&&" in words:
        end = words.index("&&")
        yield words[:end]
        words = words[end + 1 :]
    yield words
