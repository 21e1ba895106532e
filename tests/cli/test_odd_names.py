"""Class and file names that could harm a terminal, a spreadsheet or a folder, in all commands."""

import csv
import importlib
import json
import re
import shutil

import pytest

from apa_det_cli.runner import run_command

from ..conftest import TINY_CONFIG, tiny_datasets

NAMES = ["=1+1", "../../up", "x" * 300, "نیم\u200cفاصله/\\:*?"]
FILES = ["a\x1b[31m\x07.jpg", "=1+1\n.jpg", "y" * 240 + ".jpg", "-\u202efdp.jpg"]
COLORS = re.compile(r"\x1b\[(0|1|39|[34]\d|38;5;\d+)m")  # of detectron2's log


@pytest.fixture(scope="module")
def folder(tiny_dataset, tmp_path_factory):
    """A folder with a dataset of these names, and the config of a tiny model."""
    folder = tmp_path_factory.mktemp("odd")
    data = folder / "data"
    shutil.copytree(tiny_dataset, data)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name
        for image, name in zip(content["images"], FILES, strict=False):
            (data / image["file_name"]).rename(data / f"{split}{name}")
            image["file_name"] = f"{split}{name}"
        (data / f"{split}.json").write_text(json.dumps(content))
    config = TINY_CONFIG.format(datasets=tiny_datasets(data))
    (folder / "config.yaml").write_text(config.replace("tiny_", "odd_"))
    return folder


def test_commands(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    config = ["--config-file", "config.yaml"]
    weights = ["MODEL.WEIGHTS", "out/model_final.pth"]
    results = "out/inference/lvis_instances_results.json"
    training = ["OUTPUT_DIR", "out", "SOLVER.MAX_ITER", "1", "TEST.LONG_TAIL", "True"]
    training += ["TEST.SAVE_PREDICTIONS", "True"]
    images = ["data/train" + name for name in FILES]
    commands = {
        "prepare_dataset": ["check", "data/train.json", "data"],
        "train_detector": [*config, "--num-gpus", "0", "--opts", *training],
        "evaluate_predictions": ["--gt", "data/val.json", "--results", results, "--image-root"]
        + ["data", "--report", "report"],
        "run_demo": [*config, "--output", "demo", "--input", *images, "--opts", *weights],
        "convert_checkpoint": ["out/model_final.pth", "--output", "converted.pth"],
    }
    for name, flags in commands.items():
        module = importlib.import_module(f"apa_det_cli.{name}")
        try:
            status = run_command(module, flags, "apa-det")
        except SystemExit as end:  # of the launcher of processes
            status = end.code or 0
        captured = capfd.readouterr()
        assert status == 0, captured.err[-2000:]
        for text in (captured.out, captured.err):
            assert not unprintable(COLORS.sub("", text)), name
    assert not unprintable(COLORS.sub("", (folder / "out/log.txt").read_text()))
    assert {path.name for path in folder.iterdir()} == {
        *("data", "config.yaml", "out", "report", "demo", "converted.pth")
    }
    written = [path for path in folder.rglob("*") if (folder / "data") not in path.parents]
    assert all(path.name.isprintable() and len(path.name) <= 255 for path in written)
    assert len([path for path in written if path.match("demo/*.jpg")]) == len(FILES)
    with open(folder / "report/per_category.csv", newline="") as file:
        names = [row[0] for row in csv.reader(file)]
    assert "'=1+1" in names and not any(name.startswith("=") for name in names)


def unprintable(text):
    return {c for c in text if not c.isprintable() and c not in "\n\r\t\u200c"}


def test_control_characters_in_class_names(folder, tmp_path, capfd):
    content = json.loads((folder / "data/train.json").read_text())
    content["categories"][1]["name"] = "a\x1b[31m"
    (tmp_path / "train.json").write_text(json.dumps(content))
    config = TINY_CONFIG.format(
        datasets=[["tiny_train", str(tmp_path / "train.json"), str(folder)]]
    )
    (tmp_path / "config.yaml").write_text(config.replace("tiny_", "odd_names_"))
    flags = ["--config-file", str(tmp_path / "config.yaml"), "--opts", "DATASETS.TEST", "()"]
    train = importlib.import_module("apa_det_cli.train_detector")
    with pytest.raises(SystemExit, match="2"):
        run_command(train, [*flags, "OUTPUT_DIR", str(tmp_path / "out")], "apa-det")
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.search(r"train.json: category \d+: name must have no control characters", error)
    assert error.isprintable()
