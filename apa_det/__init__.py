"""APA for detectron2: importing this package registers its backbones and heads."""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "apa_det needs detectron2, which is not installed: install it as its INSTALL.md says "
        "(github.com/facebookresearch/detectron2), or run scripts/setup_env.sh in a checkout of "
        "apa_det, which makes an environment with everything in .venv."
    ) from error

from . import modeling
from .activation import AGLU, APA, aglu, apa, log_apa, logit_apa
from .config import add_apa_config
from .data import v3det  # noqa: F401
from .modeling import fuse, inject, restore

__version__ = "0.1.0"

__all__ = [
    "AGLU",
    "APA",
    "add_apa_config",
    "aglu",
    "apa",
    "fuse",
    "inject",
    "log_apa",
    "logit_apa",
    "modeling",
    "restore",
]
