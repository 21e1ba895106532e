"""Invalid keys and values of files and overrides are named in one sentence, by all commands."""

import sys
from pathlib import Path

import pytest

import apa_det_cli
from apa_det.config import check_values
from apa_det.engine import read_config
from apa_det.errors import MissingFileError, UserError

LAZY = str(Path(__file__).parents[3] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.py")


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("SOLVER.BASE_LRR", "1.0", "{} SOLVER.BASE_LRR. Did you mean SOLVER.BASE_LR?"),
        ("solver.base_lr", "1.0", "{} solver.base_lr. Did you mean SOLVER.BASE_LR?"),
        (
            *("MODEL.NMS_THRESH_TEST", "0.5"),
            "{} MODEL.NMS_THRESH_TEST. Did you mean MODEL.ROI_HEADS.NMS_THRESH_TEST or "
            "MODEL.RETINANET.NMS_THRESH_TEST?",
        ),
        ("NONSENSE", "1", "{} NONSENSE."),
        ("SOLVER.MAX_ITER.X", "1", "{} SOLVER.MAX_ITER.X. Did you mean SOLVER.MAX_ITER?"),
        ("SOLVER", "5", "SOLVER must be a group of keys, got 5."),
        ("SOLVER.BASE_LR", "1", "SOLVER.BASE_LR must be a float, got 1: write 1.0."),
        ("SOLVER.BASE_LR", "high", "SOLVER.BASE_LR must be a number >= 0, got 'high'."),
        ("SOLVER.MAX_ITER", "1.5", "SOLVER.MAX_ITER must be an integer >= 1, got 1.5."),
        ("DATASETS.TRAIN", "lvis", "DATASETS.TRAIN must be a list, got 'lvis'."),
        ("MODEL.MASK_ON", "1", "MODEL.MASK_ON must be True or False, got 1."),
    ],
)
def test_overrides(key, value, sentence):
    with pytest.raises(UserError) as error:
        read_config("", [key, value])
    sentence = sentence.format("there is no config key")
    assert str(error.value) == f"The overrides on the command line: {sentence}"


@pytest.mark.parametrize("number", [-1, 0])
def test_number_of_classes(number):
    with pytest.raises(UserError, match=f"NUM_CLASSES must be an integer >= 1, got {number}"):
        check_values(read_config("", ["MODEL.ROI_HEADS.NUM_CLASSES", str(number)]))


def test_huge_integer():
    with pytest.raises(UserError, match="MAX_ITER must be .* got an integer of 20,001 bits"):
        check_values(read_config("", ["SOLVER.MAX_ITER", hex(1 << 20000)]))


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "SOLVER: {BASE_LRR: 1.0}",
            "there is no config key SOLVER.BASE_LRR. Did you mean SOLVER.BASE_LR?",
        ),
        ("SOLVER: {STEPS: 5}", "SOLVER.STEPS must be an ascending list, got 5."),
        ("SOLVER: {MAX_ITER: {a: 1}}", "SOLVER.MAX_ITER must be an integer >= 1, got a: 1."),
        ("SOLVER: 5", "SOLVER must be a group of keys, got 5."),
    ],
)
def test_files(text, sentence, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"VERSION: 2\n{text}\n")
    with pytest.raises(UserError) as error:
        read_config(str(path))
    assert str(error.value) == f"{path}: {sentence}"


COMMANDS = {
    "train": [],
    "eval": [],
    "quickstart": [],
    "calibrate": ["--method", "NorCal"],
    "analyze-activations": [],
    "demo": ["--input", "IMAGE", "--output", "out"],
    "export-model": ["--sample-image", "IMAGE"],
    "ensemble": ["--checkpoints", "a.pth", "b.pth", "--output", "all.json"],
    "compare": ["--output", "out", "--dry-run"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("is_lazy", [False, True])
def test_commands(command, is_lazy, tiny_config, tiny_dataset, tmp_path, monkeypatch, capsys):
    if command == "ensemble":
        pytest.importorskip("ensemble_boxes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("apa_det.data.generate_dataset", lambda folder: None)
    image = str(next((tiny_dataset / "val").iterdir()))
    flags = [image if flag == "IMAGE" else flag for flag in COMMANDS[command]]
    config = LAZY if is_lazy else str(tiny_config)
    bad = ["train.seed=one"] if is_lazy else ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "-1.0"]
    with pytest.raises(SystemExit, match="2"):
        sys.exit(apa_det_cli.main([command, *flags, "--config-file", config, "--opts", *bad]))
    assert f"{bad[0].partition('=')[0]} must be" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_missing_file_of_an_odd_name():
    with pytest.raises(MissingFileError, match=r"no config file a\\x1b\[31m\.yaml"):
        read_config("a\x1b[31m.yaml")
