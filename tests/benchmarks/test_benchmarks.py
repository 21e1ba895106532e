"""The benchmarks in small: every table has its rows, and all ways of evaluation give one AP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Run a subcommand, one repeat of it; give what it writes as JSON."""
    monkeypatch.syspath_prepend(TOOLS)

    def run(*arguments: str) -> dict:
        import benchmark

        file = tmp_path / "out.json"
        benchmark.main([*arguments, "--device", "cpu", "--repeats", "1", "--json", str(file)])
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
    assert "torch.compile: does not run here, RuntimeError: no compiler" in capsys.readouterr().out
    check_rows(rows, "SiLU")
    size = 2 * 16 * 32 * 32 * (4 if dtype == "float32" else 2) / 1e6
    parameters = 1e-4
    assert rows["SiLU"]["kept_mb"] == size
    assert rows["SiLU"]["peak_mb"] == pytest.approx(2 * size)  # the output and the gradient
    for name in ("AGLU, eager", "AGLU, native"):
        if name in rows:
            assert size <= rows[name]["kept_mb"] < size + parameters
    assert rows["formula, eager PyTorch"]["kept_mb"] > 2 * size


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
    monkeypatch.syspath_prepend(TOOLS)
    import model_benchmark

    in_a_process = model_benchmark.peak_of_process
    asked = []

    def peak(name, args):
        """Each takes seconds: one stands for all."""
        asked.append(name)
        return in_a_process(name, args) if len(asked) == 3 and options[0] == "step" else 1.0

    monkeypatch.setattr(model_benchmark, "peak_of_process", peak)
    rows = measured(*options, "--size", "64", "96", "--batch", "1")["rows"]
    assert list(rows) == asked
    check_rows(rows, model_benchmark.REFERENCE)
    if options[0] == "step":
        assert rows["APA"]["peak_mb"] > 3 * 4 * 40  # weights, gradients and momentum
    else:
        assert list(rows)[3:] == [*model_benchmark.FUSED, model_benchmark.CHANNELS_LAST]


def test_evaluation_benchmark(tmp_path):
    pytest.importorskip("ultrafast_pycocotools")
    cat_info = tmp_path / "categories.json"
    categories = [
        {"id": i, "name": f"c{i}", "image_count": n, "instance_count": 2 * n, "frequency": f}
        for i, (n, f) in enumerate([(9_000, "f"), (40_000, "f"), (5, "r"), (8_000, "c")], 1)
    ]
    cat_info.write_text(json.dumps(categories))
    command = [sys.executable, ROOT / "benchmarks/benchmark.py", "evaluate", "--pictures", "12"]
    command += ["--detections", "30", "--cat-info", cat_info, "--json", tmp_path / "out.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for text in ("category frequencies of categories.json", "of which the engine", "lvis-api"):
        assert text in done.stdout
    results = json.loads((tmp_path / "out.json").read_text())
    assert [(r["pictures"], r["iou_type"]) for r in results] == [(12, "bbox"), (12, "segm")]
    for result in results:
        assert 0.1 < result["ours"]["AP"] < 0.9
        for way in ("fast", "lvis"):
            assert result[way]["AP"] == pytest.approx(result["ours"]["AP"], abs=1e-9)
            assert result[way]["seconds"] > 0 and result[way]["peak"] > 10
