"""The commands: their names, their flags, and that help needs neither torch nor detectron2."""

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from apa_det.data.frequency import COMMON_MAX, RARE_MAX
from apa_det.evaluation.engines import ENGINES, IOU_TYPES
from apa_det.evaluation.ensembling import ENSEMBLE_METHODS
from apa_det.export.formats import FILES
from apa_det_cli import COMMANDS, flags

ROOT = Path(__file__).parents[2]
TOOLS = {path.stem: path for path in (ROOT / "tools").glob("*.py")}
NAMES = {  # of the tools that are not named as their command
    "train_net": "train",
    "lazyconfig_train_net": "train",
}


@pytest.fixture
def poisoned(tmp_path):
    for package in ("torch", "detectron2"):
        (tmp_path / f"{package}.py").write_text('raise RuntimeError("imported")')
    return [tmp_path]


def parsers():
    """The parser of each command, by name, and those of the commands in it."""
    for name, module in COMMANDS.items():
        parser = import_module(f"apa_det_cli.{module}").parser(name)
        subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if subparsers:
            yield from ((p.prog, p) for p in subparsers[0].choices.values())
        else:
            yield name, parser


PARSERS = dict(parsers())


def actions(parser):
    return {flag: a for a in parser._actions for flag in a.option_strings or [a.dest]}


def without_usage(text):
    return text.partition("\n\n")[2]


@pytest.mark.parametrize("name", TOOLS)
def test_help_needs_no_torch(name, run, poisoned):
    status, out, err = run(TOOLS[name], "--help", path=poisoned)
    assert (status, err) == (0, "") and out.startswith(f"usage: {name}.py ")
    command = NAMES.get(name, name.replace("_", "-"))
    status, same, err = run("-m", "apa_det_cli", command, "--help", path=poisoned)
    assert (status, err) == (0, "") and same.startswith(f"usage: apa-det {command} ")
    assert without_usage(same) == without_usage(out)


def test_commands_are_listed_on_one_line_each(run, poisoned):
    status, out, err = run("-m", "apa_det_cli", "--help", path=poisoned)
    assert (status, err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} +[A-Z].*\.$", out, re.M)
    assert all(len(line) <= 100 for line in out.splitlines())
    status, _, err = run("-m", "apa_det_cli", "no-command", path=poisoned)
    assert status == 2 and "invalid choice: 'no-command'" in err


def test_each_tool_is_a_command_and_a_short_program():
    assert {NAMES.get(name, name.replace("_", "-")) for name in TOOLS} == set(COMMANDS) - {"eval"}
    for path in TOOLS.values():
        assert path.stat().st_mode & 0o111, path
        assert len(path.read_text().splitlines()) <= 15
    assert "apa_det/engine/trainer.py" in TOOLS["train_net"].read_text()


def test_module_names_are_not_those_of_apa_det():
    ours, theirs = (
        {path.stem for path in (ROOT / package).rglob("*.py")} - {"__init__", "__main__"}
        for package in ("apa_det_cli", "apa_det")
    )
    assert not ours & theirs


@pytest.mark.parametrize("name", PARSERS)
def test_flags_are_the_same_everywhere(name):
    found = actions(PARSERS[name])
    assert found["--import"].dest == "imports"
    assert ("--config-file" in found) == ("--opts" in found)
    if "--config-file" in found:
        config, opts = found["--config-file"], found["--opts"]
        assert config.dest == "config_file" and config.help.startswith(flags.CONFIG_HELP)
        assert (opts.dest, opts.help) == ("opts", flags.OPTS_HELP)
    for flag, action in found.items():
        others = [actions(p)[flag] for p in PARSERS.values() if flag in actions(p)]
        assert {a.dest for a in others} == {action.dest}, flag
        if flag in ("--gt", "--results", "--count-from", "--max-dets", "--import"):
            assert {a.help for a in others} == {action.help}, flag
    writes = {"average-checkpoints", "convert-checkpoint", "ensemble", "export-model", "demo"}
    writes |= {name for name in PARSERS if name.startswith("prepare-dataset")}
    writes |= {"calibrate", "compare", "pretrain"}
    writes -= {"prepare-dataset check"}
    assert ("--output" in found) == (name in writes | {"analyze-activations"})


def test_train_has_the_flags_of_detectron2():
    theirs, ours = actions(default_argument_parser()), actions(PARSERS["train"])
    added = {"--import", "--opts", "--overwrite"}
    assert theirs.keys() <= ours.keys() and ours.keys() - theirs.keys() == added
    for flag in theirs.keys() - {"opts"}:
        for name in ("dest", "default", "type", "const", "nargs"):
            assert getattr(ours[flag], name) == getattr(theirs[flag], name), flag


@pytest.mark.parametrize(
    "line",
    [
        "train --config-file c --opts A 1 B 2",
        "train --config-file c A 1 B 2",
        "train --config-file c A 1 --opts B 2",
        "train --config-file c -- A 1 B 2",
        "demo --config-file c --input a b --output o --opts A 1 B 2",
        "convert-checkpoint in --output out --opts A 1 B 2",
    ],
)
def test_overrides(line):
    command, *arguments = line.split()
    assert PARSERS[command].parse_args(arguments).opts == ["A", "1", "B", "2"]
    assert PARSERS["train"].parse_args([]).opts == []  # the default is not shared


def test_values_are_those_of_apa_det():
    def choices(command, flag):
        return tuple(actions(PARSERS[command])[flag].choices)

    assert choices("evaluate-predictions", "--iou-type") == tuple(IOU_TYPES)
    assert choices("evaluate-predictions", "--engine") == tuple(ENGINES)
    assert choices("ensemble", "--method") == tuple(ENSEMBLE_METHODS)
    assert choices("export-model", "--format") == tuple(FILES)
    assert actions(PARSERS["calibrate"])["--strengths"].default == tuple(i / 10 for i in range(11))
    thresholds = actions(PARSERS["prepare-dataset check"])
    assert (thresholds["--rare-max"].default, thresholds["--common-max"].default) == (
        RARE_MAX,
        COMMON_MAX,
    )
    strengths = ["--config-file", "c", "--method", "m", "--strengths"]
    assert PARSERS["calibrate"].parse_args([*strengths, "1,0.5"]).strengths == (0.0, 0.5, 1.0)
    for wrong in ("-1", "a"):
        with pytest.raises(SystemExit):
            PARSERS["calibrate"].parse_args([*strengths, wrong])
