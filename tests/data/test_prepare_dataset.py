"""tools/prepare_dataset.py, as a program."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from apa_det.data import read_lvis_json
from apa_det.utils.json_files import read_json, write_json

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/prepare_dataset.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("prepare_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_synthetic_then_check(main, tmp_path, capsys):
    folder = tmp_path / "new"
    arguments = "--num-train 4 --num-val 2 --num-classes 6 --image-size 80 --mask-format rle"
    assert main(["synthetic", str(folder), *arguments.split()]) == 0
    assert 'DATASETS.LVIS_FORMAT \'[["synthetic_train"' in capsys.readouterr().out
    assert len(read_lvis_json(folder / "train.json")["images"]) == 4
    assert main(["check", str(folder / "train.json"), str(folder)]) == 0
    out = capsys.readouterr().out
    assert "4 pictures (0 without annotations)" in out and out.endswith("Problems: 0\n")

    (folder / "train/000000000002.jpg").unlink()
    assert main(["check", str(folder / "train.json"), str(folder)]) == 1
    out = capsys.readouterr().out
    assert "missing picture: 1\n  image 2: there is no file" in out
    assert out.endswith("Problems: 1\n")


def test_coco_to_lvis(main, tinycoco, tmp_path, capsys):
    train, val = (tinycoco / f"annotations/instances_{s}2017.json" for s in ("train", "val"))
    output = tmp_path / "new/val.json"
    assert main(["coco-to-lvis", str(val), str(output), "--counts-from", str(train)]) == 0
    assert "6 pictures, 135 annotations. Dropped 1 crowds and 0" in capsys.readouterr().out
    dataset = read_lvis_json(output)
    person = dataset["categories"][0]
    images = {a["image_id"] for a in read_json(train)["annotations"] if a["category_id"] == 1}
    assert 0 < person["image_count"] <= len(images)
    assert person["frequency"] == "c"
    assert main(["check", str(output), str(tinycoco / "images/val2017")]) == 0


@pytest.mark.parametrize("command", ["check {json} .", "coco-to-lvis {json} out.json"])
def test_one_line_errors(command, main, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.json"
    assert main(command.format(json=path).split()) == 2
    path.write_text('{"images": [')
    assert main(command.format(json=path).split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "x.json does not exist" in lines[0]
    assert "x.json is cut off" in lines[1]
    assert not (tmp_path / "out.json").exists()


def test_wrong_arguments(main, small, tmp_path, capsys):
    assert main(["synthetic", str(tmp_path), "--num-classes", "0"]) == 2
    write_json(small, tmp_path / "x.json")
    json_file, out = str(tmp_path / "x.json"), str(tmp_path / "y.json")
    assert main(["coco-to-lvis", json_file, out, "--rare-max", "200"]) == 2
    assert main(["synthetic", str(tmp_path / "x.json" / "folder")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "must be 1 or more" in lines[0]
    assert "rare_max" in lines[1]
    assert "Not a directory" in lines[2]


def test_runs_as_a_program():
    run = subprocess.run(
        [sys.executable, str(TOOL), "--help"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert all(command in run.stdout for command in ("coco-to-lvis", "check", "synthetic"))
