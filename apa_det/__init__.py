"""A detectron2 plugin for APA. Importing it registers its backbones, heads and datasets."""

from .errors import MissingPackageError
from .requirements import find_problem

if _problem := find_problem():
    raise MissingPackageError(_problem)

from . import model_zoo, modeling
from .activation import AGLU, APA, aglu, apa, log_apa, logit_apa
from .config import add_apa_config
from .data import v3det  # noqa: F401
from .injection import inject, restore
from .integration import param_groups, setup
from .modeling import build_model, fuse

__version__ = "0.2.0"
