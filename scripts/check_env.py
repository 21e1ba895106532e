#!/usr/bin/env python3
"""Check that this Python has the packages of a make target: check_env.py TARGET.

If packages are missing, print how to install them and exit with 1.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Requirement(NamedTuple):
    name: str
    check: Callable[[], object]  # raises if the package is missing or broken
    fix: str


def check_torchvision():
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def check_detectron2():
    for module in ("engine", "evaluation", "model_zoo"):
        import_module(f"detectron2.{module}")
    from detectron2.data.detection_utils import get_fed_loss_cls_weights  # noqa: F401


def package(name: str, fix: str) -> Requirement:
    return Requirement(name, partial(import_module, name), fix)


RUN = [
    package("torch", "install PyTorch and torchvision as described on pytorch.org"),
    Requirement("torchvision", check_torchvision, "install the torchvision release for this torch"),
    Requirement(
        "detectron2",
        check_detectron2,
        "install detectron2's main branch (github.com/facebookresearch/detectron2, INSTALL.md; "
        "release 0.6 is too old)",
    ),
    package("cv2", "pip install opencv-python-headless"),
    package("lvis", "pip install --no-deps lvis==0.5.3"),
]
FAST = [package("ultrafast_pycocotools", "pip install ultrafast-pycocotools==0.1.14")]
TEST = FAST + [
    package("pytest", "pip install pytest"),
    package("xdist", "pip install pytest-xdist"),
    package("hypothesis", "pip install hypothesis"),
    package("mpmath", "pip install mpmath"),
]
REQUIREMENTS = {
    "quickstart": RUN,
    "benchmark": RUN + FAST,
    "test": RUN + TEST,
    "lint": [package("ruff", "pip install ruff")],
    "docs": [package("material", 'pip install -e ".[docs]"')],
}


def device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return (
            "CPU: an NVIDIA driver is installed, but torch finds no GPU. Update the driver for "
            f"CUDA {torch.version.cuda}, or use your own torch: make TARGET PYTHON=..."
        )
    return "CPU"


def main() -> int:
    target = sys.argv[1]
    needs_torch = target not in ("lint", "docs")
    warnings.simplefilter("ignore")
    missing = []
    for requirement in REQUIREMENTS[target]:
        try:
            requirement.check()
        except Exception as error:  # a broken install can raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            missing.append(f"  {requirement.name}: {reason}\n      {requirement.fix}")
    python = f"{sys.executable} (Python {sys.version.split()[0]})"
    if sys.version_info < (3, 10):  # noqa: UP036 (this file runs with any Python 3)
        missing.append("  python: apa_det requires Python 3.10 or later")
    elif needs_torch and not missing:
        problem = runpy.run_path(str(ROOT / "apa_det/requirements.py"))["find_problem"]()
        missing += [f"  {problem}"] if problem else []
    if missing:
        problem = f"{python} does not have the packages for `make {target}`:"
        print(problem, *missing, sep="\n", file=sys.stderr)
        return 1
    if needs_torch:
        import torch

        print(f"{python}: torch {torch.__version__} on {device()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
