"""The job of a config: its model, data, schedule and evaluation, whatever the config format."""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from omegaconf import DictConfig
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..data import has_ground_truth
from ..data.catalog import get_dataset_records
from ..data.frequency import FrequencyGroups
from ..errors import UserError
from ..evaluation import LongTailEvaluator, evaluator_metric_names
from ..modeling import PostProcessing
from .loading import CheckedLoader


class Job(ABC):
    """Settings of a training or evaluation, and the parts that are built from them.

    :class:`~apa_det.engine.setup.yaml.YamlJob` reads them from detectron2's yaml configs and
    :class:`~apa_det.engine.setup.lazy.LazyJob` from its LazyConfigs. Training, evaluation,
    calibration, analysis, demo, export and experiments take a job, so they work with both.
    """

    KEYS: ClassVar[Mapping[str, str]]  # config key of each setting, for messages and `changed`
    LONG_TAIL_ADVICE: ClassVar[str]  # how the config asks for the long-tail evaluation

    config: CfgNode | DictConfig  # what the settings were read from
    seed: int  # negative for a random one
    output_dir: str  # for checkpoints, logs and results
    weights: str  # path, URL or name of the checkpoint to start from or to evaluate; "" for none
    device: str  # of the model, e.g. "cuda" or "cpu"
    train_datasets: Sequence[str]  # names of registered datasets
    test_datasets: Sequence[str]
    test_workers: int  # processes of a test loader that read images; 0 for none
    batch_size: int | None  # images per optimizer step, over all processes; None if unknown
    num_parts: int  # that each process splits its batch into (gradient accumulation)
    reference_world_size: int  # number of processes that the config is written for; 0 for any
    max_iter: int  # training iterations
    eval_period: int  # iterations between evaluations; 0 for one at the end
    checkpoint_period: int  # iterations between checkpoints
    checkpoints_kept: int | None  # periodic checkpoints to keep; None for all
    figures: bool  # whether to draw figures of the training into the output folder
    writers: Sequence[str]  # further event writers, see WRITERS
    log_period: int  # iterations between lines of the log and of metrics.json
    parameter_log_period: int  # iterations between records of λ and κ; 0 for none
    mixed_precision: bool  # whether to train with autocast
    amp_dtype: str  # of autocast; "": float16 on a GPU, bfloat16 on a CPU
    ema_decay: float | None  # of the averaged weights; None for no average
    fsdp: bool  # whether to shard the model over the processes
    ddp: dict  # keyword arguments of DistributedDataParallel
    trained: Sequence[str]  # see SOLVER.TRAINED
    reinitialized: Sequence[str]  # see MODEL.REINITIALIZE
    transfer_from: str  # see MODEL.TRANSFER_FROM
    skip_nonfinite: int  # iterations in a row with NaN or infinite gradients to skip
    best_metric: str  # whose best checkpoint is kept; "" for none
    patience: int  # evaluations without a better best_metric before the end; 0: no early stopping
    subset: int  # images per test set to evaluate during training; 0 for all
    test_time_augmentation: bool  # whether to evaluate with it as well, after training
    precise_bn_iters: int  # that recompute batch norm statistics before an evaluation; 0 for none
    groups: FrequencyGroups | None  # of the evaluation; None for those of the dataset
    count_from: str | None  # registered dataset with image counts; None for the evaluated one
    imports: Sequence[str]  # modules that were imported to register components
    extra_metrics: Sequence[str]  # see TEST.EXTRA_METRICS
    engine: str  # see TEST.ENGINE
    save_predictions: bool | None  # write the predictions; None: only those of evaluate()

    # ---------------------------------------------------------------- parts of the job
    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model on ``device``, with initial weights."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer; its ``step`` clips the gradients if the config says so."""

    @abstractmethod
    def build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the learning rate schedule; it is stepped once per iteration."""

    @abstractmethod
    def build_train_loader(self, num_workers: int | None = None) -> Iterable[list[dict]]:
        """Build the training loader; ``num_workers`` overrides the config's."""

    @abstractmethod
    def build_test_mapper(self) -> Callable[[dict], dict]:
        """Build the test mapper, which has the attributes of detectron2's ``DatasetMapper``."""

    def build_test_loader(
        self, records: Sequence[dict], mapper: Callable | None = None
    ) -> CheckedLoader:
        """Build a test loader of dataset dicts, by default with :meth:`build_test_mapper`."""
        mapper = mapper or self.build_test_mapper()
        return CheckedLoader(
            build_detection_test_loader(records, mapper=mapper, num_workers=self.test_workers)
        )

    def first_test_dataset(self) -> str:
        """Return the first test dataset.

        Raises:
            UserError: there is none.
        """
        if not self.test_datasets:
            raise UserError(f"{self.KEYS['test_datasets']} is empty: set it to a dataset.")
        return self.test_datasets[0]

    def test_folder(self, dataset_name: str, suffix: str = "") -> str:
        """Return the folder for the results of a test set: one for each if there are several."""
        folder = os.path.join(self.output_dir, f"inference{suffix}")
        return os.path.join(folder, dataset_name) if len(self.test_datasets) > 1 else folder

    def evaluation_folder(self, dataset_name: str) -> str:
        """Return the folder that the evaluator of a test set writes to."""
        return self.test_folder(dataset_name)

    @property
    def groups_text(self) -> str:
        """``groups`` as ``TEST.FREQUENCY_GROUPS`` takes them; "" for those of the dataset."""
        if self.groups is None or self.groups.file_first or self.groups.max_counts is None:
            return ""
        *first, last = self.groups.names
        pairs = zip(first, self.groups.max_counts, strict=True)
        return ",".join([*(f"{name}:{count}" for name, count in pairs), last])

    def read_test_records(self, dataset_name: str) -> Sequence[dict]:
        """Read the dataset dicts of a registered dataset, including images without objects."""
        return get_dataset_records([dataset_name], filter_empty=False)

    @abstractmethod
    def build_long_tail_evaluator(self, dataset_name: str, **kwargs) -> LongTailEvaluator:
        """Build the evaluator of a dataset for which :meth:`is_long_tail` is true.

        ``kwargs`` override the arguments of :class:`LongTailEvaluator` from the config.
        """

    @abstractmethod
    def build_trainer(self):
        """Build the :class:`~apa_det.engine.trainer.JobTrainer` of this job."""

    @abstractmethod
    def test(self, model: nn.Module) -> OrderedDict:
        """Evaluate a model on the test sets; empty except in the main process."""

    @abstractmethod
    def augmented(self, model: nn.Module) -> nn.Module:
        """Wrap a model in test-time augmentation."""

    @abstractmethod
    def test_with_augmentation(self, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation; the keys of the results end in ``_TTA``."""

    # ---------------------------------------------------------------- variants of the job
    @abstractmethod
    def scaled(self, world_size: int) -> "Job":
        """Return the job scaled from the reference number of processes to another.

        The batch size and the learning rate grow by the ratio, iterations and periods shrink by it.
        """

    @abstractmethod
    def stages(self) -> list["Job"]:
        """Return this job, followed by its second stage under decoupled training.

        Raises:
            UserError: the settings of the second stage are incomplete.
        """

    @abstractmethod
    def changed(self, values: Mapping[str, object]) -> "Job":
        """Return the job with other values of settings, given by their names in ``KEYS``."""

    def saving_predictions(self) -> "Job":
        """Return the job that writes its predictions, unless the config says whether it does."""
        if self.save_predictions is not None or not all(map(self.is_long_tail, self.test_datasets)):
            return self
        return self.changed({"save_predictions": True})

    @abstractmethod
    def for_inference(self) -> "Job":
        """Return the job without settings of training that would read the training set."""

    @abstractmethod
    def with_calibration(self, method: str, strength: float) -> "Job":
        """Return the job with a calibration of the class scores, see ``CALIBRATION_REGISTRY``."""

    @abstractmethod
    def calibration_overrides(self, method: str, strength: float) -> list[str]:
        """Return the settings of :meth:`with_calibration` as lines of command-line overrides."""

    @abstractmethod
    def with_score_thresholds(self, thresholds: str) -> "Job":
        """Return the job with score thresholds, see ``TEST.SCORE_THRESH_PER_GROUP``; "" for none.

        Raises:
            UserError: the model has no post-processing of apa_det.
        """

    @abstractmethod
    def score_threshold_overrides(self, thresholds: str) -> list[str]:
        """Return the settings of :meth:`with_score_thresholds` as lines of overrides."""

    @abstractmethod
    def postprocessings(self) -> list[PostProcessing]:
        """Return what chooses the detections, as the config sets it."""

    @abstractmethod
    def save_config(self, folder: str | None = None) -> None:
        """Write ``config.yaml`` into a folder. None: ``output_dir``."""

    # ---------------------------------------------------------------- facts and checks
    @abstractmethod
    def is_long_tail(self, dataset_name: str) -> bool:
        """Return whether :class:`LongTailEvaluator` evaluates a test set."""

    @abstractmethod
    def num_classes(self) -> tuple[int, str] | None:
        """Return the number of classes and its config key; None if unknown."""

    @abstractmethod
    def unset_num_classes(self) -> list[str]:
        """Return the config keys of the number of classes that the config leaves unset."""

    @abstractmethod
    def with_num_classes(self, number: int) -> "Job":
        """Return the job with a value for all of :meth:`unset_num_classes`."""

    def long_tail_metric_names(self, *, has_masks: bool, prefix: str = "") -> list[str]:
        """Return the metrics of :class:`LongTailEvaluator` during training, after a prefix."""
        iou_types = ["bbox", "segm"] if has_masks else ["bbox"]
        if has_masks and "boundary" in self.extra_metrics:
            iou_types.append("boundary")
        if self.subset:  # the whole test set is evaluated only at the end
            prefix += "subset/"
        groups = self.groups.names if self.groups else ("r", "c", "f")
        metrics = evaluator_metric_names(groups, self.extra_metrics)
        return [f"{prefix}{iou_type}/{name}" for iou_type in iou_types for name in metrics]

    def annotated_test_datasets(self) -> dict[str, str]:
        """Return the test sets with ground truth, and the prefix of the metrics of each.

        With several test sets, it is their name, as in the results of detectron2's trainer.
        """
        several = len(self.test_datasets) > 1
        names = filter(has_ground_truth, self.test_datasets)
        return {name: f"{name}/" if several else "" for name in names}

    @abstractmethod
    def metric_names(self) -> list[str] | None:
        """Return the possible values of ``best_metric``; None if unknown."""

    @abstractmethod
    def counted_datasets(self) -> Sequence[str]:
        """Return the datasets whose image counts the model's calibration needs."""

    @abstractmethod
    def read_class_counts(self) -> None:
        """Read what the model's calibration needs of the training sets, e.g. the image counts.

        Raises:
            UserError: a training set is missing or invalid, or does not provide it.
        """

    @abstractmethod
    def check(self, *, eval_only: bool) -> None:
        """Raise a UserError for invalid settings of this config format."""

    def check_model(self, model: nn.Module) -> None:  # noqa: B027
        """Raise a UserError for settings that have no effect on the built model."""

    def check_inference(self, model: nn.Module) -> None:  # noqa: B027
        """Raise a UserError for settings of inference that have no effect on the built model."""

    def verify(self, results: Mapping) -> None:  # noqa: B027
        """Compare results with the config's expected ones, if it has any."""


def autocast_dtype(job: Job, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast in the training of a job on a device; None: no autocast."""
    if not job.mixed_precision:
        return None
    default = "float16" if device.type == "cuda" else "bfloat16"
    return getattr(torch, job.amp_dtype or default)
