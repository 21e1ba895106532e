"""Small runs of all benchmarks: tables have all rows, and all libraries compute the same AP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apa_det.engine import read_job

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Run a benchmark command with one repeat and return its JSON output."""
    monkeypatch.syspath_prepend(ROOT)

    def run(*arguments: str) -> dict:
        from benchmarks.__main__ import main

        file = tmp_path / "out.json"
        main([*arguments, "--device", "cpu", "--repeats", "1", "--json", str(file)])
        return json.loads(file.read_text())

    return run


def check_rows(rows: dict, reference: str) -> None:
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["ratios"][reference] == pytest.approx(
            row["seconds"] / rows[reference]["seconds"]
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation(measured, monkeypatch, capsys, dtype):
    def fail(function):
        def compiled(*args):
            raise RuntimeError("no compiler\nand more")

        return compiled

    monkeypatch.setattr(torch, "compile", fail)
    rows = measured("activation", "--shape", "2", "16", "32", "32", "--dtype", dtype)["rows"]
    assert rows.pop("formula, torch.compile") == {"error": "RuntimeError: no compiler"}
    assert "torch.compile: failed, RuntimeError: no compiler" in capsys.readouterr().out
    check_rows(rows, "SiLU")
    size = 2 * 16 * 32 * 32 * (4 if dtype == "float32" else 2) / 1e6
    parameters = 1e-4
    assert rows["SiLU"]["kept_mb"] == size
    assert rows["SiLU"]["peak_mb"] == pytest.approx(2 * size)  # the output and the gradient
    for name in ("AGLU, eager", "AGLU, native"):
        if name in rows:
            assert size <= rows[name]["kept_mb"] < size + parameters
    assert rows["formula, eager PyTorch"]["kept_mb"] > 2 * size


def test_gate(measured):
    rows = measured("gate", "--shape", "1", "32", "4", "4", "--cpu-time")["rows"]
    check_rows(rows, "SE gate, formula, eager PyTorch")


def test_class_loss(measured):
    rows = measured("class-loss", "--proposals", "32", "--classes", "20")["rows"]
    check_rows(rows, "detectron2's sigmoid cross-entropy")
    assert {"GOL + DropLoss", "FocalLoss, gumbel", "SeesawLoss, softmax"} <= rows.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_block(measured, dtype):
    rows = measured("block", "--shape", "1", "32", "8", "8", "--dtype", dtype)["rows"]
    check_rows(rows, "ReLU, sigmoid gate (detectron2)")
    assert rows["AGLU, APA gate"]["kept_mb"] < rows["AGLU, APA gate, not fused"]["kept_mb"]


def test_carafe(measured):
    rows = measured("carafe", "--rois", "1", "--channels", "8", "--size", "4")["rows"]
    check_rows(rows, "deconvolution")


@pytest.mark.parametrize("options", [["step"], ["inference", "--amp", "--detections", "4"]])
def test_models(measured, monkeypatch, options):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import models

    peak_of_process = models.peak_of_process
    names = []

    def peak(name, args):
        """Run only one of the processes, which take seconds."""
        names.append(name)
        return peak_of_process(name, args) if len(names) == 3 and options[0] == "step" else 1.0

    monkeypatch.setattr(models, "peak_of_process", peak)
    rows = measured(*options, "--size", "64", "96", "--batch", "1")["rows"]
    assert list(rows) == names
    check_rows(rows, models.REFERENCE)
    if options[0] == "step":
        assert rows["APA"]["peak_mb"] > 3 * 4 * 40  # weights, gradients and momentum
    else:
        assert list(rows)[3:] == [*models.FUSED, models.CHANNELS_LAST]


def test_gradients(monkeypatch, tmp_path, tiny_config, capsys):
    """A checkpoint whose λ are 0.5 larger has moved by that."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.__main__ import main

    job = read_job(tiny_config, ["SEED", "3"])
    torch.manual_seed(3)
    state = job.build_model().state_dict()
    names = [name for name in state if name.endswith("lambda_param")]
    weights = {name: x + 0.5 if name in names else x for name, x in state.items()}
    torch.save({"model": weights}, tmp_path / "model.pth")
    job.save_config(str(tmp_path))
    files = ["--config-file", tmp_path / "config.yaml", "--weights", tmp_path / "model.pth"]
    main(["gradients", *map(str, files), "--batches", "2", "--json", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())
    number, gradient, ratio, same_sign, moved = rows["final"]["λ of activations"]
    assert number == len(names) and gradient > 0 and ratio > 0
    assert same_sign in (0.5, 0.75, 1) and moved == pytest.approx(0.5)
    assert rows["final"]["κ of activations"][4] == rows["initial"]["λ of activations"][4] == 0
    assert "|mean| / std is 0.56" in capsys.readouterr().out  # √(2 / 2π)


def test_loader(measured):
    rows = measured("loader", "--size", "64", "--images", "2")["rows"]
    assert len(rows) == 12
    for name, row in rows.items():
        (ratio,) = row["ratios"].values()
        assert row["seconds"] > 0 and (ratio == 1) == (" + " not in name)


def test_evaluation(tmp_path):
    pytest.importorskip("ultrafast_pycocotools")
    cat_info = tmp_path / "data/lvis/lvis_v1_train_cat_info.json"
    cat_info.parent.mkdir(parents=True)
    categories = [
        {"id": i, "name": f"c{i}", "image_count": n, "instance_count": 2 * n, "frequency": f}
        for i, (n, f) in enumerate([(9_000, "f"), (40_000, "f"), (5, "r"), (8_000, "c")], 1)
    ]
    cat_info.write_text(json.dumps(categories))
    command = [sys.executable, "-m", "benchmarks", "evaluate", "--images", "12"]
    command += ["--detections", "30", "--json", tmp_path / "out.json"]
    env = {**os.environ, "APA_DET_TEST_DATA": str(tmp_path / "data")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for text in ("category frequencies of lvis_v1_train_cat_info", "s in the engine", "lvis-api"):
        assert text in done.stdout
    results = json.loads((tmp_path / "out.json").read_text())
    assert [(r["images"], r["iou_type"]) for r in results] == [(12, "bbox"), (12, "segm")]
    for result in results:
        assert 0.1 < result["ours"]["AP"] < 0.9
        for library in ("fast", "lvis"):
            assert result[library]["AP"] == pytest.approx(result["ours"]["AP"], abs=1e-9)
            assert result[library]["seconds"] > 0 and result[library]["peak"] > 10


@pytest.mark.parametrize("command", ["ground-truth", "evaluate-v3det"])
def test_other_evaluations(tmp_path, command):
    file = tmp_path / "out.json"
    options = ["--classes", "30"] if command == "evaluate-v3det" else ["--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks", command, "--images", "9", *options]
    done = subprocess.run(
        [*command, "--json", file], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    if "--classes" in options:
        (results,) = results
        assert results["ours"]["AP"] == pytest.approx(results["detectron2"]["AP"], abs=1e-9)
    else:
        assert set(results) == {"ours", "masks", "json", "lvis"}
        assert all(row["seconds"] > 0 for row in results.values())


def test_report(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "report", "--images", "9", "--boxes"]
    command += ["--detections", "20", "--folder", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "s of CPU, peak" in done.stdout
    assert len(json.loads((tmp_path / "detector2.json").read_text())) == 9 * 20
    assert (tmp_path / "report" / "report.html").exists()


def test_category_frequencies(monkeypatch, capsys, tmp_path):
    """A Zipf law without APA_DET_TEST_DATA; an error if it or --cat-info names a missing file."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.evaluation_data import read_categories

    monkeypatch.delenv("APA_DET_TEST_DATA", raising=False)
    categories, source = read_categories(None)
    assert len(categories) == 1203 and source == "category frequencies by a Zipf law"
    assert "APA_DET_TEST_DATA is not set" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="missing.json does not exist. Check --cat-info or"):
        read_categories("missing.json")
    monkeypatch.setenv("APA_DET_TEST_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="lvis/lvis_v1_train_cat_info.json does not exist"):
        read_categories(None)


def test_data(tmp_path):
    file = tmp_path / "out.json"
    arguments = ["--images", "40", "--batches", "1", "--processes", "2", "--json", str(file)]
    command = [sys.executable, "-m", "benchmarks", "data", *arguments]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Up to a ready training loader" in output and "The check of the JSON file" in output
    results = json.loads(file.read_text())
    for library in ("ours", "detectron2"):
        assert results[library]["seconds"] > 0 and results[library]["processes"]["peak"] > 0
    assert results["ours"]["shared"] > 0 == results["detectron2"]["shared"]
    assert results["speed"]["ratio"] > 0


def test_data_files_are_the_same_for_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.data_file import write_dataset

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_dataset(tmp_path / name, 30)
    a, b = ((tmp_path / name / "train.json").read_bytes() for name in ("a", "b"))
    assert a == b
