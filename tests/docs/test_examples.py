"""The form of README, docs and the notebook; scripts/check_docs.py runs what is in them."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"


@pytest.fixture
def all_commands(check_docs, pages):
    return [c for page, text in pages.items() for c in check_docs.commands(page, text)]


def test_readme_starts_with_quickstart_and_test(pages, commands):
    text = pages["README.md"]
    assert commands(text)[:2] == [["make", "quickstart"], ["make", "test"]]
    assert text.startswith("# apa_det\n\n```sh\nmake quickstart")
    assert len(text.splitlines()) <= 150


def test_readme_python_is_short(pages, blocks):
    (example,) = blocks(pages["README.md"], "python")
    statements = [line for line in example.splitlines() if line and " import " not in line]
    assert len(statements) <= 12 and "import apa_det" in example


def test_pictures(pages):
    shown = {
        (ROOT / page).parent / path
        for page, text in pages.items()
        for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    }
    assert shown == set((ROOT / "docs/images").iterdir()) and len(shown) >= 2
    for path in shown:
        assert path.suffix == ".png" and path.stat().st_size < 300_000


def test_shell_syntax(pages, blocks):
    for page, text in pages.items():
        for block in blocks(text, "sh"):
            result = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
            assert result.returncode == 0, (page, block, result.stderr)


def test_all_code_is_checked(pages, blocks):
    """A block in another language than these could hold a command that nobody runs."""
    for page, text in pages.items():
        for language, block in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.M):
            assert language in ("sh", "python", "yaml", "text", ""), (page, language)
            if language in ("text", ""):
                program = r"^(\$|apa-det|tools/|python|pip|make|torchrun) ?"
                assert not re.search(program, block, re.M), (page, block)
        for block in blocks(text, "python"):
            ast.parse(block, page)


def test_tables_of_check_docs(check_docs, all_commands):
    """Each entry stands for a command."""
    for table in (check_docs.NOT_RUN, check_docs.ADDED):
        for pattern in table:
            assert any(re.match(pattern, command.line) for command in all_commands), pattern
    run = [command for command in all_commands if not command.reason]
    assert len(run) > len(all_commands) / 2
    beside_data_yaml = {"labels"}  # YOLO looks for labels/ beside images/, which data.yaml names
    for name in set(check_docs.docs_data.STAND_INS) - beside_data_yaml:
        assert any(re.search(rf"(?<![\w/]){name}\b", command.line) for command in run), name


def test_commands_are_read_as_bash_reads_them(check_docs):
    text = """```sh
# the first's
one a \\
    b   # a comment
two "c # d" '
e' && three # the third's
```
```python
four
```"""
    found = [*check_docs.commands("p", text)]
    assert [c.text for c in found] == [
        "one a \\\n    b   # a comment\n",
        "two \"c # d\" '\ne' && three # the third's\n",
    ]
    assert [c.line for c in found] == ["one a b", "two \"c # d\" ' e' && three"]


def test_a_failing_command_is_reported(check_docs, tmp_path, capsys):
    check = check_docs.Check(tmp_path)
    check.template.mkdir()
    page = "```sh\ntouch here\n```\n"
    check.check_page("good.md", page)
    assert not check.failed
    check.check_page("bad.md", "```sh\nexit 3\n```\n")
    assert check.failed and "exit status 3" in capsys.readouterr().out
    check.failed = False
    check.check_page("missing.md", "```sh\ntrue --output picture.png\n```\n")
    assert check.failed and "picture.png was not written" in capsys.readouterr().out
    check.failed = False
    check.check_page("python.md", "```python\nraise ValueError('no')\n```\n")
    assert check.failed and "ValueError: no" in capsys.readouterr().out


def test_notebook():
    """It has no outputs, and links to pages that exist."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(source)
        for target in re.findall(r"\]\(([^)]+)\)", source):
            assert (NOTEBOOK.parent / target).exists(), target
