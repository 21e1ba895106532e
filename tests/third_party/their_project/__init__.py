"""A project of somebody else that uses detectron2, and of apa_det what it imports."""

from . import backbone, box_head  # registers them
from .config import add_their_config
from .trainer import TheirTrainer

__all__ = ["TheirTrainer", "add_their_config", "backbone", "box_head"]
