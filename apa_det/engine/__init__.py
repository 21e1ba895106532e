"""Train and evaluate jobs of yaml configs and LazyConfigs."""

from .checkpointer import StrictCheckpointer
from .decoupled import last_stage, train
from .freezing import train_only
from .hooks import BestCheckpointer, LambdaKappaPlotter, LambdaKappaWriter
from .job import Job
from .launch import run
from .optimizer import build_optimizer
from .setup.checks import check_job
from .setup.config_files import read_config, read_lazy_config
from .setup.lazy import LazyJob
from .setup.start import overrides, read_job, setup_job
from .setup.yaml import YamlJob
from .testing import evaluate, load_model
from .trainer import JobTrainer
from .writers import WRITER_REGISTRY
from .yaml_trainer import Trainer
