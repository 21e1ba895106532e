"""The packages that apa_det needs.

scripts/check_env.py runs this file without importing apa_det.
"""

from importlib import import_module
from importlib.util import find_spec

MINIMUM = {"torch": "2.4", "numpy": "1.26"}

# How to install each package that apa_det and the parts of detectron2 that it uses import
_INSTALL = {
    "torch": "install PyTorch and torchvision as described on pytorch.org",
    "torchvision": "install the torchvision release for your torch, see pytorch.org",
    "numpy": "pip install numpy",
    "detectron2": "install its main branch as described in its INSTALL.md "
    "(github.com/facebookresearch/detectron2), or run scripts/setup_env.sh in a checkout of "
    "apa_det to create .venv with all packages",
    "matplotlib": "pip install matplotlib",
    "PIL": "pip install pillow",
    "pycocotools": "pip install pycocotools",
    "tabulate": "pip install tabulate",
    "tqdm": "pip install tqdm",
}


def find_problem() -> str | None:
    """Return one sentence about the first package that is missing, too old or broken.

    None: there is no problem.
    """
    for name, install in _INSTALL.items():
        if find_spec(name) is None:
            return f"apa_det requires {name}, which is not installed: {install}."
    for name, minimum in MINIMUM.items():
        version = import_module(name).__version__
        if _numbers(version) < _numbers(minimum):
            return f"apa_det requires {name} >= {minimum}, got {version}: install a newer release."
    try:
        from torchvision.ops import nms  # noqa: F401
    except Exception as error:  # with a wrong torch, its operators are missing, or it does not load
        return f"torchvision does not work with this torch ({error}): {_INSTALL['torchvision']}."
    try:
        from detectron2.data.detection_utils import get_fed_loss_cls_weights  # noqa: F401
    except ImportError as error:
        return f"This detectron2 is too old or broken ({error}): {_INSTALL['detectron2']}."
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return (2, 4) for "2.4.1+cpu"."""
    return tuple(int(number) for number in version.split(".")[:2])
