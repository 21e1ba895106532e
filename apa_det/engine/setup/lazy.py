"""Jobs of LazyConfigs."""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
from detectron2.config import instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ...data import APADatasetMapper, build_train_loader, ensure_metadata, get_dataset_records
from ...data.class_names import align_training_sets
from ...data.frequency import FrequencyGroups
from ...data.lvis_format import register_datasets
from ...errors import UserError
from ...evaluation import LongTailEvaluator
from ...modeling import PostProcessing
from ...utils.log_file import FILE_ONLY
from ..job import Job
from ..optimizer import clip_gradients
from ..trainer import JobTrainer
from . import lazy_evaluation, lazy_scores
from .config_files import available_device, call_target, save_lazy_config, unset_keys
from .second_stage import lazy_second_stage, replay_nodes

logger = logging.getLogger(__name__)

# They take any sequence of dataset dicts.
_LOADERS = (build_train_loader, build_detection_train_loader, build_detection_test_loader)


class LazyJob(Job):
    """The job of a LazyConfig."""

    KEYS = {
        "weights": "train.init_checkpoint",
        "output_dir": "train.output_dir",
        "seed": "train.seed",
        "save_predictions": "dataloader.evaluator.save_predictions",
        "device": "train.device",
        "train_datasets": "dataloader.train.dataset.names",
        "test_datasets": "dataloader.test.dataset.names",
        "lvis_format": "dataloader.lvis_format",
        "batch_size": "dataloader.train.total_batch_size",
        "num_parts": "train.accumulate",
        "reference_world_size": "train.reference_world_size",
        "ema": "train.ema.enabled",
        "ema_decay": "train.ema.decay",
        "precise_bn": "train.precise_bn.enabled",
        "fsdp": "train.fsdp",
        "mixed_precision": "train.amp.enabled",
        "amp_dtype": "train.amp.dtype",
        "find_unused_parameters": "train.ddp.find_unused_parameters",
        "trained": "train.trained",
        "reinitialized": "train.reinitialize",
        "decoupled_trained": "train.decoupled.trained",
        "transfer_from": "train.transfer_from",
        "best_metric": "train.best_metric",
        "patience": "train.early_stopping_patience",
        "eval_period": "train.eval_period",
        "checkpoints_kept": "train.checkpointer.max_to_keep",
        "skip_nonfinite": "train.skip_nonfinite",
        "subset": "train.eval_subset",
        "imports": "train.imports",
    }
    LONG_TAIL_ADVICE = "set dataloader.evaluator to L(apa_det.evaluation.LongTailEvaluator)(...)"

    def __init__(self, cfg: DictConfig):
        """
        Args:
            cfg: the config; its datasets are registered.
        """
        train, get = cfg.train, cfg.train.get
        self.config = cfg
        self.seed = get("seed", -1)
        self.output_dir = train.output_dir
        self.weights = train.init_checkpoint or ""
        self.device = train.device
        self.train_datasets = self._dataset_names("train")
        self.test_datasets = self._dataset_names("test")
        self.test_workers = OmegaConf.select(cfg, "dataloader.test.num_workers") or 0
        self.batch_size = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
        self.num_parts = get("accumulate", 1)
        self.reference_world_size = get("reference_world_size", 0)
        self.max_iter = train.max_iter
        self.eval_period = train.eval_period
        self.checkpoint_period = train.checkpointer.period
        self.checkpoints_kept = train.checkpointer.get("max_to_keep") or None
        self.skip_nonfinite = get("skip_nonfinite", 0)
        self.figures = get("figures", True)
        self.writers = get("writers", ())
        self.log_period = train.log_period
        self.parameter_log_period = get("apa_log_period", 0)
        self.mixed_precision = train.amp.enabled
        self.amp_dtype = train.amp.get("dtype", "")
        self.ema_decay = train.ema.decay if get("ema") and train.ema.enabled else None
        self.fsdp = get("fsdp", False)
        self.ddp = dict(train.ddp)
        self.trained = get("trained", ())
        self.reinitialized = get("reinitialize", ())
        self.transfer_from = get("transfer_from", "")
        self.best_metric = get("best_metric", "")
        self.patience = get("early_stopping_patience", 0)
        self.subset = get("eval_subset", 0)
        self.test_time_augmentation = self._enabled("test_augmentation")
        self.precise_bn_iters = train.precise_bn.num_iter if self._enabled("precise_bn") else 0
        evaluator = cfg.dataloader.get("evaluator") or {}
        self.groups = instantiate(evaluator.get("groups"))
        self.count_from = evaluator.get("count_from")
        self.extra_metrics = tuple(evaluator.get("extra_metrics", ()))
        self.engine = evaluator.get("engine", "fast")
        self.save_predictions = evaluator.get("save_predictions")
        self.imports = get("imports", ())
        self._evaluators: dict[str, DatasetEvaluator] | None = None  # built for the first test

    @classmethod
    def prepare(cls, cfg: DictConfig) -> "LazyJob":
        """Register the config's datasets, choose an available device, and return the job."""
        register_datasets(
            cfg.dataloader.get("lvis_format", ()),
            allow_outside_root=cfg.dataloader.get("allow_outside_root", False),
        )
        cfg.train.device = available_device(cfg.train.device, cls.KEYS["device"])
        for split in ("train", "test"):
            mapper = OmegaConf.select(cfg, f"dataloader.{split}.mapper")
            if mapper is not None and call_target(mapper) is DatasetMapper:
                mapper._target_ = APADatasetMapper  # reads any image and any mask
            loader = cfg.dataloader.get(split)
            dataset = OmegaConf.select(cfg, f"dataloader.{split}.dataset")
            if (
                isinstance(dataset, DictConfig)
                and call_target(dataset) is get_detection_dataset_dicts
                and call_target(loader) in _LOADERS
            ):
                dataset._target_ = get_dataset_records  # needs less memory
        return cls(cfg)

    def _enabled(self, key: str) -> bool:
        node = self.config.train.get(key)
        return bool(node and node.enabled)

    def _dataset_names(self, split: str) -> list[str]:
        names = OmegaConf.select(self.config, f"dataloader.{split}.dataset.names")
        return [names] if isinstance(names, str) else list(names or ())

    def _select(self, name: str) -> tuple[object, str] | None:
        """Return the value and the key of a part of the model; None if there is none."""
        for model in lazy_scores.MODELS:
            value = OmegaConf.select(self.config, f"{model}.{name}")
            if value is not None:
                return value, f"{model}.{name}"
        return None

    def build_model(self) -> nn.Module:
        unset = self.unset_num_classes()
        if unset:
            raise UserError(
                f"{unset[0]} is not set, and neither a dataset nor the checkpoint gives the number "
                "of classes: set it."
            )
        model = instantiate(self.config.model).to(self.device)
        logger.info("Model:\n%s", model, extra=FILE_ONLY)
        return model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        cfg = self.config
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        cfg.optimizer.params.model = None  # do not keep the model alive
        clip = cfg.train.get("clip_gradients")
        if clip and clip.clip_type:
            clip_gradients(optimizer, **clip, key="train.clip_gradients.clip_type")
        return optimizer

    def build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return LRMultiplier(optimizer, instantiate(self.config.lr_multiplier), self.max_iter)

    def build_train_loader(self, num_workers: int | None = None) -> Iterable[list[dict]]:
        loader = copy.copy(self.config.dataloader.train)
        if num_workers is not None:
            loader.num_workers = num_workers
        if call_target(loader) is build_train_loader and self.seed >= 0:
            loader.setdefault("seed", self.seed)
        return instantiate(loader)

    def build_test_mapper(self) -> Callable[[dict], dict]:
        return instantiate(self.config.dataloader.test.mapper)

    def build_long_tail_evaluator(self, dataset_name: str, **kwargs) -> LongTailEvaluator:
        arguments = {
            "output_dir": self.test_folder(dataset_name),
            "subset": self.subset,
        }
        if self._has_long_tail_evaluator():
            evaluator = self.config.dataloader.evaluator.items()
            arguments |= {k: instantiate(v) for k, v in evaluator if k != "_target_"}
        return LongTailEvaluator(**{**arguments, "dataset_name": dataset_name, **kwargs})

    def evaluation_folder(self, dataset_name: str) -> str:
        folder = lazy_evaluation.evaluator_folder(self, dataset_name)
        return folder or self.test_folder(dataset_name)

    @property
    def groups_text(self) -> str:
        text = OmegaConf.select(self.config, "dataloader.evaluator.groups.text")
        return text if isinstance(text, str) else super().groups_text

    def build_trainer(self):
        align_training_sets(self.train_datasets)  # the evaluator reads the order of classes
        # Before training: their files may be invalid.
        self._evaluators = lazy_evaluation.build_evaluators(self)
        return JobTrainer(self)

    def test(self, model: nn.Module) -> OrderedDict:
        if self._evaluators is None:
            self._evaluators = lazy_evaluation.build_evaluators(self)
        return lazy_evaluation.test_model(self.config, model, self._evaluators)

    def augmented(self, model: nn.Module) -> nn.Module:
        settings = self.config.train.test_augmentation
        mapper = DatasetMapperTTA(list(settings.min_sizes), settings.max_size, settings.flip)
        return GeneralizedRCNNWithTTA(lazy_evaluation.tta_config(model), model, mapper)

    def test_with_augmentation(self, model: nn.Module) -> OrderedDict:
        logger.info("Running inference with test-time augmentation ...")
        evaluators = lazy_evaluation.build_evaluators(self, "_TTA")
        results = lazy_evaluation.test_model(self.config, self.augmented(model), evaluators)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())

    def scaled(self, world_size: int) -> "LazyJob":
        reference = self.reference_world_size
        if reference in (0, world_size):
            return self
        growth = world_size / reference
        cfg = copy.deepcopy(self.config)
        train = cfg.train
        cfg.dataloader.train.total_batch_size = round(self.batch_size * growth)
        cfg.optimizer.lr *= growth
        train.reference_world_size = world_size
        train.max_iter = round(self.max_iter / growth)  # lr_multiplier scales with it
        train.eval_period = round(self.eval_period / growth)
        train.checkpointer.period = round(self.checkpoint_period / growth)
        if self.parameter_log_period > 0:
            train.apa_log_period = max(1, round(self.parameter_log_period / growth))
        for replay in replay_nodes(cfg.model):
            replay.start_iter = round(replay.get("start_iter", 0) / growth)
        if self.ema_decay is not None:
            train.ema.decay = self.ema_decay**growth
        logger.info(
            "Scaled from %d to %d processes: batch size %d, learning rate %g, %d iterations.",
            *(reference, world_size, cfg.dataloader.train.total_batch_size),
            *(cfg.optimizer.lr, train.max_iter),
        )
        return LazyJob(cfg)

    def stages(self) -> list[Job]:
        second = lazy_second_stage(self.config)
        return [self] if second is None else [self, LazyJob(second)]

    def changed(self, values: Mapping[str, object]) -> "LazyJob":
        cfg = copy.deepcopy(self.config)
        for name, value in values.items():
            OmegaConf.update(cfg, self.KEYS[name], value, force_add=True)
        return LazyJob(cfg)

    def for_inference(self) -> "LazyJob":
        return LazyJob(lazy_scores.without_federated_loss(self.config))

    def _with_scores(self, **values) -> "LazyJob":
        cfg = copy.deepcopy(self.config)
        for key in lazy_scores.score_nodes(cfg):
            OmegaConf.select(cfg, key).update(values)
        return LazyJob(cfg)

    def with_calibration(self, method: str, strength: float) -> "LazyJob":
        return self._with_scores(
            calibration=method,
            calibration_strength=float(strength),
            calibration_datasets=list(self.train_datasets),
        )

    def with_score_thresholds(self, thresholds: str) -> "LazyJob":
        return self._with_scores(**self._threshold_settings(thresholds))

    def score_threshold_overrides(self, thresholds: str) -> list[str]:
        return lazy_scores.score_overrides(self.config, self._threshold_settings(thresholds))

    def _threshold_settings(self, thresholds: str) -> dict[str, object]:
        datasets = [*self.train_datasets, *self.test_datasets]
        return lazy_scores.threshold_settings(self.config, datasets, thresholds)

    def postprocessings(self) -> list[PostProcessing]:
        return lazy_scores.postprocessings(self.config)

    def calibration_overrides(self, method: str, strength: float) -> list[str]:
        values = {
            "calibration": method,
            "calibration_strength": f"{strength:g}",
            "calibration_datasets": list(self.train_datasets),
        }
        return lazy_scores.score_overrides(self.config, values)

    def save_config(self, folder: str | None = None) -> None:
        save_lazy_config(self.config, folder or self.output_dir)

    def _has_long_tail_evaluator(self) -> bool:
        evaluator = self.config.dataloader.get("evaluator")
        return evaluator is not None and call_target(evaluator) is LongTailEvaluator

    def is_long_tail(self, dataset_name: str) -> bool:
        return self._has_long_tail_evaluator()

    def num_classes(self) -> tuple[int, str] | None:
        return self._select("roi_heads.num_classes") or self._select("num_classes")

    def unset_num_classes(self) -> list[str]:
        model = OmegaConf.to_container(self.config.model, resolve=False)
        return [*unset_keys(model, "model")]

    def with_num_classes(self, number: int) -> "LazyJob":
        cfg = copy.deepcopy(self.config)
        for key in self.unset_num_classes():
            OmegaConf.update(cfg, key, number)
        return LazyJob(cfg)

    def metric_names(self) -> list[str] | None:
        if self.config.dataloader.get("evaluator") is None:
            return []
        if not self._has_long_tail_evaluator():
            return None
        has_masks = not self._select("roi_heads") or bool(self._select("roi_heads.mask_head"))
        evaluated = lazy_evaluation.evaluated_datasets(self.config)
        if evaluated != self.test_datasets:  # one evaluator of another dataset
            return self.long_tail_metric_names(has_masks=has_masks)
        return [
            name
            for prefix in self.annotated_test_datasets().values()
            for name in self.long_tail_metric_names(has_masks=has_masks, prefix=prefix)
        ]

    def counted_datasets(self) -> list[str]:
        return [
            *dict.fromkeys(n for _, names in lazy_scores.calibrations(self.config) for n in names)
        ]

    def read_class_counts(self) -> None:
        for name in self.counted_datasets():
            ensure_metadata(name)
        lazy_scores.read_class_values(self.config)

    def check(self, *, eval_only: bool) -> None:
        if eval_only and self.config.dataloader.get("evaluator") is None:
            raise UserError(
                "dataloader.evaluator is missing, but evaluation needs it: set it, e.g. to "
                "L(apa_det.evaluation.LongTailEvaluator)(dataset_name=...)."
            )
        pastes = OmegaConf.select(self.config, "dataloader.train.copy_paste")
        if pastes and call_target(self.config.dataloader.train) is not build_train_loader:
            raise UserError(
                "dataloader.train.copy_paste needs dataloader.train to be "
                "L(apa_det.data.build_train_loader)(...): change it, or remove copy_paste."
            )
        if not isinstance(self.groups, FrequencyGroups | None):
            raise UserError(
                "dataloader.evaluator.groups must be FrequencyGroups, e.g. "
                f"L(FrequencyGroups.parse)(text=...); got {self.groups!r}."
            )
        federated = self._select("roi_heads.box_predictor.use_fed_loss")
        if not eval_only and self.train_datasets and federated and federated[0]:
            ensure_metadata(self.train_datasets[0])  # the model needs its class_image_count
        self.read_class_counts()
        inner = self.config.model.get("model", self.config.model)  # within L(injected)
        lazy_scores.check_test_augmentation(self.config)
        if self.test_time_augmentation and call_target(inner) is not GeneralizedRCNN:
            raise UserError(
                "train.test_augmentation works with L(GeneralizedRCNN) only: set "
                "train.test_augmentation.enabled=False."
            )
        for key in (self.KEYS["batch_size"], "optimizer.lr"):
            if self.reference_world_size and OmegaConf.select(self.config, key) is None:
                raise UserError(
                    f"{self.KEYS['reference_world_size']} needs {key}, which the config does not "
                    f"have: set {self.KEYS['reference_world_size']} to 0."
                )
