"""What a run is: its model, weights, data, evaluation and schedule, in either config format."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils.events import EventWriter
from omegaconf import DictConfig
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ..data.frequency import FrequencyGroups
from ..evaluation import LongTailEvaluator

__all__ = ["Job"]


class Job(ABC):
    """A run, read from a config.

    :class:`~apa_det.engine.setup.yaml.YamlJob` reads detectron2's yaml configs and
    :class:`~apa_det.engine.setup.lazy.LazyJob` its LazyConfigs. Training, evaluation, calibration,
    analysis, demo, export and experiments take a job and do not depend on the config format.

    Attributes:
        KEYS: the config key of each setting, for error messages.
        config: the config that the job was read from.
        seed: seed of the run; negative for a random one.
        output_dir: folder for checkpoints, logs and results.
        weights: path, URL or name of the checkpoint to start from or to evaluate; "" for none.
        device: device of the model, such as "cuda" or "cpu".
        train_datasets, test_datasets: names of registered datasets.
        batch_size: images per optimizer step, over all processes; None if unknown.
        num_parts: parts that each process splits its images of a step into.
        reference_world_size: number of processes that the config was written for; 0 for any.
        max_iter: number of training iterations.
        eval_period, checkpoint_period, parameter_log_period: iterations between two evaluations,
            checkpoints, and records of λ and κ; 0: only at the end (λ and κ: never).
        checkpoints_kept: number of periodic checkpoints to keep; None for all.
        log_period: iterations between two lines of the log and of ``metrics.json``.
        mixed_precision: whether to train with autocast.
        ema_decay: decay of the averaged weights; None for no average.
        fsdp: whether to shard the model over the processes.
        ddp: keyword arguments of DistributedDataParallel.
        trained, reinitialized, transfer_from: see ``SOLVER.TRAINED``, ``MODEL.REINITIALIZE`` and
            ``MODEL.TRANSFER_FROM``.
        best_metric: metric whose best checkpoint is kept; "" for none.
        subset: images per test set to evaluate during training; 0 for all.
        test_time_augmentation: whether to evaluate with it too, after training.
        precise_bn_iters: iterations that recompute batch norm statistics before an evaluation; 0
            for none.
        groups: frequency groups of the evaluation; None for LVIS's.
        count_from: registered dataset to take image counts from; None for the evaluated one.
        imports: modules that were imported to register components.
        extra_metrics, engine: see ``TEST.EXTRA_METRICS`` and ``TEST.ENGINE``.
    """

    KEYS: ClassVar[Mapping[str, str]]

    config: CfgNode | DictConfig
    seed: int
    output_dir: str
    weights: str
    device: str
    train_datasets: Sequence[str]
    test_datasets: Sequence[str]
    batch_size: int | None
    num_parts: int
    reference_world_size: int
    max_iter: int
    eval_period: int
    checkpoint_period: int
    checkpoints_kept: int | None
    log_period: int
    parameter_log_period: int
    mixed_precision: bool
    ema_decay: float | None
    fsdp: bool
    ddp: dict
    trained: Sequence[str]
    reinitialized: Sequence[str]
    transfer_from: str
    best_metric: str
    subset: int
    test_time_augmentation: bool
    precise_bn_iters: int
    groups: FrequencyGroups | None
    count_from: str | None
    imports: Sequence[str]
    extra_metrics: Sequence[str]
    engine: str

    # ---------------------------------------------------------------- parts of the run
    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model, with initial weights, on ``device``."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer; its ``step`` clips the gradients if the config says so."""

    @abstractmethod
    def build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the learning rate schedule, stepped once per iteration."""

    @abstractmethod
    def build_train_loader(self, num_workers: int | None = None) -> Iterable[list[dict]]:
        """Build the training loader; ``num_workers`` overrides the config's."""

    @abstractmethod
    def build_test_mapper(self) -> Callable[[dict], dict]:
        """Build what reads and resizes a test image; it has the fields of a ``DatasetMapper``."""

    @abstractmethod
    def build_test_loader(self, records: list[dict], mapper: Callable | None = None) -> DataLoader:
        """Build a test loader of dataset dicts; ``mapper`` replaces :meth:`build_test_mapper`'s."""

    def read_test_records(self, dataset_name: str) -> list[dict]:
        """Read the dataset dicts of a registered dataset, images without objects included."""
        return get_detection_dataset_dicts([dataset_name], filter_empty=False)

    @abstractmethod
    def build_long_tail_evaluator(self, dataset_name: str, **kwargs) -> LongTailEvaluator:
        """Build the evaluator of a dataset for which :meth:`is_long_tail` holds.

        ``kwargs`` override the config's arguments of :class:`LongTailEvaluator`.
        """

    @abstractmethod
    def build_writers(self) -> list[EventWriter]:
        """Build the writers of training scalars."""

    @abstractmethod
    def build_trainer(self):
        """Build the :class:`~apa_det.engine.trainer.JobTrainer` of this job."""

    @abstractmethod
    def test(self, model: nn.Module) -> OrderedDict:
        """Evaluate a model on the test sets; empty in all processes but the main one."""

    @abstractmethod
    def augmented(self, model: nn.Module) -> nn.Module:
        """Wrap a model in test-time augmentation."""

    @abstractmethod
    def test_with_augmentation(self, model: nn.Module) -> OrderedDict:
        """:meth:`test` with test-time augmentation; the keys of the results end in ``_TTA``."""

    # ---------------------------------------------------------------- variants of the run
    @abstractmethod
    def scaled(self, world_size: int) -> "Job":
        """Scale batch, learning rate and iterations from the reference number of processes."""

    @abstractmethod
    def stages(self) -> list["Job"]:
        """Return this job, followed by its second stage under decoupled training.

        Raises:
            UserError: the settings of the second stage are incomplete.
        """

    @abstractmethod
    def changed(self, values: Mapping[str, object]) -> "Job":
        """Return the job with other values of some settings, by their names in ``KEYS``."""

    @abstractmethod
    def for_inference(self) -> "Job":
        """Return the job without what only training needs, such as data of the training set."""

    @abstractmethod
    def with_calibration(self, method: str, strength: float) -> "Job":
        """Return the job with a calibration of the class scores."""

    @abstractmethod
    def calibration_overrides(self, method: str, strength: float) -> list[str]:
        """Return :meth:`with_calibration` as overrides for the command line."""

    @abstractmethod
    def save_config(self) -> None:
        """Write ``config.yaml`` into ``output_dir``."""

    # ---------------------------------------------------------------- facts and checks
    @abstractmethod
    def is_long_tail(self, dataset_name: str) -> bool:
        """Return whether a test set is evaluated by :class:`LongTailEvaluator`."""

    @abstractmethod
    def num_classes(self) -> tuple[int, str] | None:
        """Return the model's number of classes and its config key; None if unknown."""

    @abstractmethod
    def metric_names(self) -> list[str] | None:
        """Return the values that ``best_metric`` may have; None if unknown."""

    @abstractmethod
    def read_class_counts(self) -> None:
        """Read the training sets whose image counts the model's calibration needs.

        Raises:
            UserError: a set is missing or broken, or has no image counts.
        """

    @abstractmethod
    def check(self, *, eval_only: bool) -> None:
        """Raise a UserError for settings of this config format that cannot work."""

    def check_model(self, model: nn.Module) -> None:  # noqa: B027
        """Raise a UserError for settings that have no effect on the built model."""

    def verify(self, results: Mapping) -> None:  # noqa: B027
        """Compare results with the config's expected ones, if it has any."""
