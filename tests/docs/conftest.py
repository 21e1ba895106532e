"""The pages of the documentation, their code blocks, and the commands in them."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pages() -> dict[str, str]:
    """The text of each page, by its path in the repository."""
    names = ("README.md", "CONTRIBUTING.md", "MODEL_ZOO.md")
    paths = [*(ROOT / name for name in names), *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="session")
def blocks():
    """Returns the fenced blocks of a language in a text."""
    return lambda text, language: re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="session")
def commands(blocks):
    """Returns the shell commands in a text, each as a list of words."""

    def split(text: str) -> list[list[str]]:
        return [
            argv for block in blocks(text, "sh") for line in lines(block) for argv in joined(line)
        ]

    return split


def lines(block: str):
    """Yield the words of each command line, which backslashes and quotes may continue."""
    text = ""
    for line in block.replace("\\\n", " ").splitlines(keepends=True):
        text += line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # within quotes
            continue
        if words:
            yield words
        text = ""
    assert not text, f"Unfinished command: {text}"


def joined(words: list[str]):
    """Yield the commands that && joins."""
    while "&&" in words:
        end = words.index("&&")
        yield words[:end]
        words = words[end + 1 :]
    yield words
