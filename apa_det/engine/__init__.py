from .analysis import analyze_checkpoint, analyze_lazy_checkpoint
from .checks import check_config
from .launch import run
from .lazy import evaluate_lazy, train_lazy
from .lazy_setup import setup_lazy
from .loading import StrictCheckpointer, load_for_evaluation
from .optimizer import build_optimizer
from .setup import read_config, setup
from .trainer import Trainer

__all__ = [
    "StrictCheckpointer",
    "Trainer",
    "analyze_checkpoint",
    "analyze_lazy_checkpoint",
    "build_optimizer",
    "check_config",
    "evaluate_lazy",
    "load_for_evaluation",
    "read_config",
    "run",
    "setup",
    "setup_lazy",
    "train_lazy",
]
