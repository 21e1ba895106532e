"""The command ``apa-det prepare-dataset``."""

from functools import partial

import pytest

from apa_det.data import read_lvis_json
from apa_det.utils.json_files import read_json, write_json
from apa_det_cli import main


def run(*arguments):
    return main(["prepare-dataset", *map(str, arguments)])


def test_synthetic_then_check(tmp_path, capsys):
    folder = tmp_path / "new"
    flags = "--num-train 4 --num-val 2 --num-classes 6 --image-size 80 --mask-format rle"
    assert run("synthetic", "--output", folder, *flags.split()) == 0
    assert 'DATASETS.LVIS_FORMAT \'[["synthetic_train"' in capsys.readouterr().out
    assert len(read_lvis_json(folder / "train.json")["images"]) == 4
    check = partial(run, "check", folder / "train.json", folder)
    assert check() == 0
    out = capsys.readouterr().out
    assert "4 images (0 without annotations)" in out and out.endswith("Problems: 0\n")

    (folder / "train/000000000002.jpg").unlink()
    assert check() == 1
    out = capsys.readouterr().out
    assert "missing image file: 1\n  image 2: " in out and out.endswith("Problems: 1\n")


def test_coco_to_lvis(tinycoco, tmp_path, capsys):
    train, val = (tinycoco / f"annotations/instances_{s}2017.json" for s in ("train", "val"))
    output = tmp_path / "new/val.json"
    assert run("coco-to-lvis", val, "--output", output, "--count-from", train) == 0
    out = capsys.readouterr().out
    assert "6 images, 135 annotations.\n  Dropped: 1 crowds, 0 without" in out
    assert "Most annotations are dropped" not in out
    dataset = read_lvis_json(output)
    person = dataset["categories"][0]
    images = {a["image_id"] for a in read_json(train)["annotations"] if a["category_id"] == 1}
    assert 0 < person["image_count"] <= len(images)
    assert person["frequency"] == "c"
    assert run("check", output, tinycoco / "images/val2017") == 0


@pytest.mark.parametrize("command", ["check {} .", "coco-to-lvis {} --output out.json"])
def test_one_line_errors(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.json"
    assert run(*command.format(path).split()) == 2
    path.write_text('{"images": [')
    assert run(*command.format(path).split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "x.json does not exist" in lines[0]
    assert "x.json is cut off" in lines[1]
    assert not (tmp_path / "out.json").exists()


def test_invalid_flags(small, tmp_path, capsys):
    assert run("synthetic", "--output", tmp_path, "--num-classes", 0) == 2
    write_json(small, tmp_path / "lvis.json")
    for image in small["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    write_json(small, tmp_path / "x.json")
    coco_to_lvis = ("coco-to-lvis", tmp_path / "x.json", "--output", tmp_path / "y.json")
    assert run(*coco_to_lvis, "--rare-max", 200) == 2
    assert run("synthetic", "--output", tmp_path / "x.json" / "folder") == 2
    assert run("coco-to-lvis", tmp_path / "lvis.json", "--output", tmp_path / "y.json") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "must be >= 1" in lines[0]
    assert "rare_max" in lines[1]
    assert "lvis.json is in LVIS format already" in lines[3] and "write-config" in lines[3]
    assert "x.json is a file" in lines[2]
