from .checks import check_config
from .launch import run
from .loading import StrictCheckpointer, load_for_evaluation
from .optimizer import build_optimizer
from .setup import read_config, setup
from .trainer import Trainer

__all__ = [
    "StrictCheckpointer",
    "Trainer",
    "build_optimizer",
    "check_config",
    "load_for_evaluation",
    "read_config",
    "run",
    "setup",
]
