"""A third-party detectron2 project that uses parts of apa_det."""

from . import backbone, box_head  # registers the modules
from .config import add_their_config
from .trainer import TheirTrainer

__all__ = ["TheirTrainer", "add_their_config", "backbone", "box_head"]
