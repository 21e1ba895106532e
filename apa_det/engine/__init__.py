from .analysis import analyze_checkpoint, analyze_lazy_checkpoint
from .checks import check_config
from .decoupled import last_stage, train
from .freezing import train_only
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
    "last_stage",
    "load_for_evaluation",
    "read_config",
    "run",
    "setup",
    "setup_lazy",
    "train",
    "train_lazy",
    "train_only",
]
