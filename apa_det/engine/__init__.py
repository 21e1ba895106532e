from .checkpointer import StrictCheckpointer, load_for_evaluation
from .decoupled import last_stage, train
from .freezing import train_only
from .hooks import BestCheckpointer, LambdaKappaPlotter, LambdaKappaWriter
from .jobs.analyze_checkpoint import analyze_checkpoint, analyze_lazy_checkpoint
from .launch import run
from .lazy import evaluate_lazy, train_lazy
from .optimizer import build_optimizer
from .setup.checks import check_config
from .setup.lazy import setup_lazy
from .setup.yaml import read_config, setup
from .trainer import Trainer

__all__ = [
    "BestCheckpointer",
    "LambdaKappaPlotter",
    "LambdaKappaWriter",
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
