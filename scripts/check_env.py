#!/usr/bin/env python3
"""Check that this Python has what a make target needs: check_env.py TARGET.

Prints one line when it has, else what is missing and how to install it, and exits with 1.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple


class Need(NamedTuple):
    name: str
    check: Callable[[], object]  # raises where the package is missing or does not work
    mend: str


def check_torchvision():
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def check_detectron2():
    for module in ("engine", "evaluation", "model_zoo"):
        import_module(f"detectron2.{module}")
    from detectron2.data.detection_utils import get_fed_loss_cls_weights  # noqa: F401


def package(name: str, mend: str) -> Need:
    return Need(name, partial(import_module, name), mend)


RUN = [
    package("torch", "install PyTorch and torchvision as pytorch.org says"),
    Need("torchvision", check_torchvision, "install the torchvision release made for this torch"),
    Need(
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
    package(module, f"pip install {project}")
    for module, project in (
        ("pytest", "pytest"),
        ("xdist", "pytest-xdist"),
        ("hypothesis", "hypothesis"),
        ("mpmath", "mpmath"),
    )
]
NEEDS = {
    "quickstart": RUN,
    "benchmark": RUN + FAST,
    "test": RUN + TEST,
    "lint": [package("ruff", "pip install ruff")],
}


def device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return (
            f"CPU: there is an NVIDIA driver, but torch's CUDA {torch.version.cuda} finds no GPU "
            "that it can use; update the driver, or use your own torch with make TARGET PYTHON=..."
        )
    return "CPU"


def main() -> int:
    target = sys.argv[1]
    warnings.simplefilter("ignore")
    missing = []
    for need in NEEDS[target]:
        try:
            need.check()
        except Exception as error:  # a broken install can raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            missing.append(f"  {need.name}: {reason}\n      {need.mend}")
    python = f"{sys.executable} (Python {sys.version.split()[0]})"
    if sys.version_info < (3, 10):  # noqa: UP036 (this file runs before anything is checked)
        missing.append("  python: apa_det needs Python 3.10 or later")
    if missing:
        print(f"{python} lacks what `make {target}` needs:", *missing, sep="\n", file=sys.stderr)
        return 1
    if target != "lint":
        import torch

        print(f"{python}: torch {torch.__version__} on {device()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
