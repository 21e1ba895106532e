"""A detectron2 plugin for APA. Importing it registers its backbones, heads and datasets."""

from .errors import MissingPackageError

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise MissingPackageError(
        "apa_det requires detectron2. Install it as described in its INSTALL.md "
        "(github.com/facebookresearch/detectron2), or run scripts/setup_env.sh in a checkout of "
        "apa_det to create .venv with all packages."
    ) from error

from . import modeling
from .activation import AGLU, APA, aglu, apa, log_apa, logit_apa
from .config import add_apa_config
from .data import v3det  # noqa: F401
from .injection import inject, restore
from .modeling import fuse

__version__ = "0.2.0"
