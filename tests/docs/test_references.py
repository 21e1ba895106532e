"""README and docs name only what exists: commands, flags, files, config keys, Python names."""

import argparse
import os
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, get_cfg

import apa_det
from apa_det.config.lazy_keys import LAZY_KEYS
from apa_det.engine import LazyJob, read_config, read_lazy_config
from apa_det_cli import COMMANDS

ROOT = Path(__file__).parents[2]
LAZY_CONFIG = ROOT / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.py"

# Programs that start or surround our commands; only our command's flags are parsed
LAUNCHERS = ("torchrun", "srun")
# Commands that are not ours
OTHERS = ("ln", "pip", "sbatch", "source")
# Files of the examples that the reader has, or that commands write
EXAMPLES = {"my_components.py", "my_metrics.py", "demo.py", "config.yaml", "common/train.py"}
EXAMPLES |= {"a.yaml", "b.yaml", "my.yaml", "data.yaml", "default_train.py", "lazy_train.py"}
EXAMPLES |= {"lazy_config.py", "wandb_writer.py"}
# Flags in the text that are not of apa-det, and what has them
_FLAGS = "--device", "--cat-info", "--reuse-memory", "--threads", "--cpu-time"
OTHER_FLAGS = dict.fromkeys(_FLAGS, "benchmarks")


def parser_of(name: str) -> argparse.ArgumentParser:
    return import_module(f"apa_det_cli.{COMMANDS[name]}").parser(name)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    flags = set()
    for action in parser._actions:
        flags.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            flags.update(*(flags_of(p) for p in action.choices.values()))
    return flags


def command_of(program: str) -> str:
    """The command of a program in tools/."""
    return re.search(r'tool\("(.+?)"\)', (ROOT / program).read_text()).group(1)


@pytest.fixture(scope="module")
def codes(pages):
    """The inline code of each page, outside of fenced blocks."""
    return [
        (page, code)
        for page, text in pages.items()
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    ]


@pytest.fixture(scope="module")
def with_changelog(pages):
    """The pages, and the changelog without what it says is gone."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("### Removed")[0]
    return {**pages, "CHANGELOG.md": re.sub(r"^\| .*? \|", "|", text, flags=re.M)}


def test_shell_commands(pages, commands):
    """Each is of a known program, with flags that it has and overrides of keys that exist."""
    checked = [check_command(argv) for text in pages.values() for argv in commands(text)]
    assert len([name for name in checked if name]) > 30


def check_command(argv: list[str]) -> str | None:
    program, *arguments = argv
    if program in LAUNCHERS:
        start = next(i for i, word in enumerate(argv) if word.startswith("tools/"))
        program, *arguments = argv[start:]
    if program in OTHERS:
        if program == "pip":
            extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
            project = (ROOT / "pyproject.toml").read_text()
            assert all(f"\n{extra} = [" in project for extra in extras), argv
        return None
    if program == "python":
        assert arguments[0] in EXAMPLES or (ROOT / arguments[0]).exists(), argv
        return None
    if program == "make":
        target, *variables = arguments
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), argv
        if target == "benchmark":
            name = variables[0].removeprefix("ARGS=").split()[0]
            assert f'"{name}"' in (ROOT / "benchmarks/__main__.py").read_text(), argv
        return None
    name = arguments.pop(0) if program == "apa-det" else command_of(program)
    args = parser_of(name).parse_args(arguments)  # exits if it does not know a flag
    check_overrides(args)
    return name


def check_overrides(args: argparse.Namespace) -> None:
    files = getattr(args, "config_file", None)
    for file in [files] if isinstance(files, str) else files or ():
        if file.endswith(".py"):
            read_lazy_config(str(ROOT / file), args.opts)
        else:
            written = file in {"CONFIG", *EXAMPLES} or file.startswith("output/")
            read_config("" if written else str(ROOT / file), args.opts)


def test_commands_and_flags_in_the_text(codes):
    known = {flag for name in COMMANDS for flag in flags_of(parser_of(name))}
    for page, code in codes:
        for name in re.findall(r"apa-det ([\w-]+)", code):
            assert name in COMMANDS or name == "COMMAND", (page, code)
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code):
            if flag in OTHER_FLAGS:
                sources = (ROOT / OTHER_FLAGS[flag]).glob("*.py")
                assert any(f'"{flag}"' in path.read_text() for path in sources), (page, code)
            else:
                assert flag in known, (page, code)


def test_files(codes, with_changelog):
    folders = "apa_det|apa_det_cli|benchmarks|configs|docs|requirements|scripts|tests|tools"
    for page, text in with_changelog.items():
        for path in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*", text):
            assert (ROOT / path.rstrip(".")).exists(), (page, path)
    names = {path.name for path in (ROOT / "configs").rglob("*.*")}
    for page, code in codes:
        for word in code.split():
            written = word in EXAMPLES or word.startswith("output/")
            if re.fullmatch(r"[\w./-]+\.(yaml|py)", word) and not written:
                assert word in names or (ROOT / word).exists(), (page, code)


def test_links(with_changelog):
    for page, text in with_changelog.items():
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
            if "://" in target:
                address = r"https?://[\w-]+(\.[\w-]+)+(/[\w.~/-]*)?"
                assert re.fullmatch(address, target), (page, target)
                continue
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), (page, target)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
                slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in slugs, (page, target, anchor)


def test_each_page_is_linked(pages):
    """From docs/README.md, which README.md links to."""
    assert "(docs/README.md)" in pages["README.md"]
    for page in pages:
        if not page.endswith("README.md"):
            assert f"({os.path.relpath(page, 'docs')})" in pages["docs/README.md"], page


def test_config_keys(pages):
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    for page, text in pages.items():
        for key in re.findall(rf"\b(?:{'|'.join(map(str, cfg))})(?:\.[A-Z_0-9]+)+", text):
            node = cfg
            for name in key.split("."):
                assert name in node, (page, key)
                node = node[name]


def test_lazy_config_keys(codes):
    """Of the quickstart's config, or checked or read by LazyJob."""
    cfg = LazyConfig.load(str(LAZY_CONFIG))
    source = Path(import_module(LazyJob.__module__).__file__).read_text()
    for page, code in codes:
        for key in re.findall(r"(?<![\w./])\+?((?:train|dataloader)(?:\.[a-z_0-9]+)+)", code):
            node = cfg
            for name in key.split("."):
                node = node.get(name) if hasattr(node, "get") else None
                known = key in LAZY_KEYS or re.search(rf"\b{name}\b", source)
                assert node is not None or known, (page, key)


def test_python_names(with_changelog):
    for page, text in with_changelog.items():
        for dotted in re.findall(r"(?<![\w/.-])apa_det(?:\.[A-Za-z_]\w*)+", text):
            try:
                pkgutil.resolve_name(dotted)
            except (ImportError, AttributeError):
                pytest.fail(f"{page} names {dotted}, which does not exist.")


def test_tables(pages):
    """The rows of a table have the same number of cells."""
    for page, text in {**pages, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text()}.items():
        for table in re.findall(r"(?:^\|.*\|$\n?)+", text, re.M):
            rows = table.strip().splitlines()
            assert re.fullmatch(r"\|( -+ \|)+", rows[1]), (page, rows[0])
            assert len({row.count("|") for row in rows}) == 1, (page, rows[0])
