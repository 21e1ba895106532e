"""A missing, old or broken package ends the import of apa_det with one sentence that names it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HIDE = "import sys; sys.modules[{!r}] = None; import {}"
OLD_TORCH = "import torch; torch.__version__ = '2.3.1+cu121'; import apa_det"
OLD_NUMPY = "import numpy; numpy.__version__ = '1.25.2'; import apa_det"
BROKEN = "import sys; sys.path.insert(0, {!r}); import apa_det"


def last_line(script: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", script]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 1, out.stderr
    return out.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "name", ["torch", "torchvision", "detectron2", "matplotlib", "PIL", "pycocotools", "tabulate"]
)
def test_missing(name):
    message = f"MissingPackageError: apa_det requires {name}, which is not installed: "
    assert message in last_line(HIDE.format(name, "apa_det"))


@pytest.mark.parametrize("name, text", [("cv2", "opencv-python-headless"), ("lvis", "lvis==")])
def test_missing_for_evaluation(name, text):
    module = {"cv2": "apa_det.evaluation", "lvis": "apa_det.evaluation.lvis_engine"}[name]
    message = last_line(HIDE.format(name, module))
    assert "MissingPackageError: " in message and f"pip install {text}" in message.replace(
        "--no-deps ", ""
    )


@pytest.mark.parametrize(
    "script, message",
    [
        (OLD_TORCH, "apa_det requires torch >= 2.4, got 2.3.1+cu121: install a newer release."),
        (OLD_NUMPY, "apa_det requires numpy >= 1.26, got 1.25.2: install a newer release."),
    ],
)
def test_too_old(script, message):
    assert last_line(script).endswith(f"MissingPackageError: {message}")


def test_torchvision_of_another_torch(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('no operator torchvision::nms')")
    message = last_line(BROKEN.format(str(tmp_path)))
    assert "torchvision does not work with this torch (no operator torchvision::nms)" in message


def test_check_env_reports_an_old_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.__version__ = '2.3.1'\n")
    out = subprocess.run(
        [sys.executable, "scripts/check_env.py", "quickstart"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 1
    assert "apa_det requires torch >= 2.4, got 2.3.1: install a newer release." in out.stderr
