"""The evaluation benchmark in small: all ways give one AP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_evaluation_benchmark(tmp_path):
    pytest.importorskip("ultrafast_pycocotools")
    cat_info = tmp_path / "categories.json"
    categories = [
        {"id": i, "name": f"c{i}", "image_count": n, "instance_count": 2 * n, "frequency": f}
        for i, (n, f) in enumerate([(9_000, "f"), (40_000, "f"), (5, "r"), (8_000, "c")], 1)
    ]
    cat_info.write_text(json.dumps(categories))
    command = [sys.executable, ROOT / "tools/benchmark.py", "evaluate", "--pictures", "12"]
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
