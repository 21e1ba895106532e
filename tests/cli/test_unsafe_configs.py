"""Every command that reads a yaml file: nothing in the file runs, and the error is one line."""

import importlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from apa_det.errors import UserError
from apa_det.experiments import read_plan, train_run
from apa_det.experiments.plan import _require_same_config
from apa_det_cli.runner import run_command

QUICKSTART = Path(__file__).parents[2] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml"
RUNS = 'VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.system ["touch CANARY"]\n'
COMMANDS = {
    "train_detector": "--config-file CONFIG",
    "evaluate_detector": "--config-file CONFIG",
    "quickstart": "--config-file CONFIG",
    "calibrate_scores": "--config-file CONFIG --method NorCal",
    "analyze_activations": "--config-file CONFIG --output out",
    "export_model": "--config-file CONFIG --sample-image x.png --output out",
    "run_demo": "--config-file CONFIG --input x.png --output out",
    "convert_checkpoint": "x.pth --output out.pth --config-file CONFIG",
    "ensemble": "--checkpoints x.pth x.pth --config-file CONFIG --gt gt.json --output out.json",
    "compare_configs": "--config-file CONFIG --seeds 0 --output out --dry-run",
    "compare_configs description": "CONFIG --output out --dry-run",
    "compare_configs base": "DESCRIPTION --output out --dry-run",
}
FILES = {
    "runs.yaml": (RUNS, "line 2: the tag .*os.system runs code"),
    "based.yaml": ("_BASE_: runs.yaml\n", "runs.yaml, line 2: .* runs code"),
    "list.yaml": ("[1, 2]", "list.yaml must be a yaml file of keys and values"),
    "empty.yaml": ("", "empty.yaml must be .*, got an empty file"),
    "url.yaml": ('_BASE_: "http://127.0.0.1:9/base.yaml"', "_BASE_ must be a local file"),
    "loop.yaml": ("_BASE_: loop.yaml", "loop.yaml inherits from itself"),
    "text.yaml": ('OUTPUT_DIR: "\\e[31m"', "line 1: a control character"),
    "mine.yaml": ("_BASE_: lazy.yaml", "lazy.yaml has a key _target_"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with all files."""
    monkeypatch.chdir(tmp_path)
    for name, (text, _) in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "lazy.yaml").write_text("model: {_target_: os.system, command: touch CANARY}\n")
    cv2.imwrite("x.png", np.zeros((8, 8, 3), np.uint8))
    torch.save({"model": {"w": torch.ones(1)}}, "x.pth")
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    return tmp_path


def run(command, flags):
    module = importlib.import_module(f"apa_det_cli.{command.split()[0]}")
    try:
        return run_command(module, flags.split(), "apa-det")
    except SystemExit as end:  # of the launcher of processes
        return end.code


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", FILES)
def test_nothing_runs(command, name, folder, capfd):
    message = FILES[name][1]
    if command == "compare_configs description" and "_BASE_" in FILES[name][0]:
        message = "unknown key _BASE_"
    description = {"base": name, "rows": [{"name": "a"}, {"name": "b"}], "seeds": [0]}
    (folder / "description.yaml").write_text(json.dumps(description))
    flags = COMMANDS[command].replace("CONFIG", name).replace("DESCRIPTION", "description.yaml")
    assert run(command, flags) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("apa-det: ") and error.isprintable()
    assert re.search(message, error)
    assert not (folder / "CANARY").exists()


def test_lazy_config_as_a_base_of_a_comparison(folder, capfd):
    for row in ({"name": "a"}, {"name": "a", "config": "lazy.yaml"}):
        description = {"base": "lazy.yaml", "rows": [row], "seeds": [0]}
        (folder / "description.yaml").write_text(json.dumps(description))
        assert run("compare_configs", "description.yaml --output out --dry-run") == 2
        error = capfd.readouterr().err
        assert 'row "a": lazy.yaml is a saved LazyConfig, which is code' in error
    assert not (folder / "CANARY").exists()


@pytest.mark.parametrize(
    "option",
    ["+model.x={_target_: os.system, command: touch CANARY}", "model.x='${oc.decode:\"{}\"}'"],
)
@pytest.mark.parametrize("where", ["overrides", "opts"])
def test_overrides_of_a_description(option, where, folder, capfd):
    row = {"name": "a", "opts": [option] if where == "opts" else []}
    description = {"base": "x.py", "rows": [row], "seeds": [0]}
    description |= {"overrides": [option]} if where == "overrides" else {}
    (folder / "description.yaml").write_text(json.dumps(description))
    assert run("compare_configs", "description.yaml --output out --dry-run") == 2
    assert "an override must not have _target_ or ${...}" in capfd.readouterr().err
    assert not (folder / "CANARY").exists()


@pytest.mark.parametrize(
    "text, message", [(RUNS, "runs code"), ("a: {_target_: os.system}", "of the other format")]
)
def test_kept_config_of_a_run(text, message, folder):
    (run,) = read_plan("out", configs=[str(QUICKSTART)], seeds=[0]).runs
    Path(run.folder).mkdir(parents=True)
    Path(run.config_file).write_text(text)
    with pytest.raises(UserError, match=message):
        _require_same_config(run)
    if text == RUNS:
        with pytest.raises(UserError, match=message):
            train_run(run.folder)
    assert not (folder / "CANARY").exists()
