"""Importing apa_det changes nothing for who does not ask for it."""

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
            "PYTORCH_JIT": "0",  # it computes a function otherwise from the second call on
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_models_of_detectron2_give_the_same_bits():
    """Losses, gradients and detections, of several architectures."""
    before, after = probe("outputs", "between")
    assert len(before) == len(set(before.values())) == 5
    assert after == before
    _, imported_first = probe("outputs", "first")
    assert imported_first == before


def test_changes_nothing_and_adds_names():
    found = probe("state")
    assert found["changed"] == []
    gained = found["gained"]
    assert "APAROIHeads" in gained["ROI_HEADS"]
    names = [name.lower() for held in gained.values() for name in held]
    assert all("apa" in name or name.startswith("v3det") for name in names)
