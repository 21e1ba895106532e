from .checks import check_config
from .launch import run
from .loading import StrictCheckpointer, load_for_evaluation
from .setup import setup
from .trainer import Trainer

__all__ = [
    "StrictCheckpointer",
    "Trainer",
    "check_config",
    "load_for_evaluation",
    "run",
    "setup",
]
