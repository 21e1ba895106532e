"""Importing apa_det does not change detectron2 or global state; it only registers names."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROBE = Path(__file__).with_name("import_probe.py")


def probe(*command):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROBE, *command],
        env={
            **os.environ,
            "PYTHONPATH": str(PROBE.parents[1]),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTORCH_JIT": "0",  # TorchScript changes results from the second call on
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_detectron2_models_are_bitwise_equal():
    """Losses, gradients and detections of several architectures."""
    before, after = probe("outputs", "between")
    assert len(before) == len(set(before.values())) == 5
    assert after == before
    _, imported_first = probe("outputs", "first")
    assert imported_first == before


def test_import_changes_nothing_and_registers_names():
    result = probe("state")
    assert result["changed"] == []
    added = result["added"]
    assert "APAROIHeads" in added["ROI_HEADS"]
    names = [name.lower() for registry in added.values() for name in registry]
    assert all("apa" in name or name.startswith("v3det") for name in names)
