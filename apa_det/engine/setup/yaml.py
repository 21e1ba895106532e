"""Jobs of yaml configs."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ...config import add_apa_config
from ...data import APADatasetMapper, ensure_metadata
from ...data.catalog import get_dataset_records
from ...data.frequency import FrequencyGroups
from ...data.lvis_format import register_datasets
from ...errors import UserError
from ...evaluation import LongTailEvaluator, evaluator_arguments
from ...modeling import APAInjected, FeatureReplay, PostProcessing, meta_architecture
from ...modeling.calibration import CALIBRATION_REGISTRY
from ...utils.atomic_files import open_atomic
from ..job import Job
from ..model_classes import check_num_classes
from .config_files import available_device
from .second_stage import yaml_second_stage
from .yaml_scores import (
    check_loss,
    check_postprocessing,
    check_scores,
    find_postprocessing,
    get_value,
    is_apa_retinanet,
    score_node,
)

# Config nodes with the number of classes, by meta-architecture
_NUM_CLASSES_NODES = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
}
_COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class YamlJob(Job):
    """The job of a yaml config. The class methods of a trainer build its parts."""

    KEYS = {
        "weights": "MODEL.WEIGHTS",
        "output_dir": "OUTPUT_DIR",
        "seed": "SEED",
        "save_predictions": "TEST.SAVE_PREDICTIONS",
        "device": "MODEL.DEVICE",
        "train_datasets": "DATASETS.TRAIN",
        "test_datasets": "DATASETS.TEST",
        "lvis_format": "DATASETS.LVIS_FORMAT",
        "batch_size": "SOLVER.IMS_PER_BATCH",
        "num_parts": "SOLVER.ACCUMULATE",
        "reference_world_size": "SOLVER.REFERENCE_WORLD_SIZE",
        "ema": "SOLVER.EMA.ENABLED",
        "ema_decay": "SOLVER.EMA.DECAY",
        "precise_bn": "TEST.PRECISE_BN.ENABLED",
        "fsdp": "SOLVER.FSDP",
        "mixed_precision": "SOLVER.AMP.ENABLED",
        "amp_dtype": "SOLVER.AMP.DTYPE",
        "find_unused_parameters": "SOLVER.FIND_UNUSED_PARAMETERS",
        "trained": "SOLVER.TRAINED",
        "reinitialized": "MODEL.REINITIALIZE",
        "decoupled_trained": "SOLVER.DECOUPLED.TRAINED",
        "transfer_from": "MODEL.TRANSFER_FROM",
        "best_metric": "TEST.BEST_METRIC",
        "patience": "TEST.EARLY_STOPPING_PATIENCE",
        "eval_period": "TEST.EVAL_PERIOD",
        "checkpoints_kept": "SOLVER.CHECKPOINTS_KEPT",
        "skip_nonfinite": "SOLVER.SKIP_NONFINITE",
        "subset": "TEST.SUBSET",
        "imports": "IMPORTS",
    }
    LONG_TAIL_ADVICE = "set TEST.LONG_TAIL to True for a dataset in COCO format"

    def __init__(self, cfg: CfgNode, trainer: type[DefaultTrainer], unset_keys: Sequence[str] = ()):
        """
        Args:
            cfg: the config; its datasets are registered.
            trainer: :class:`~apa_det.engine.Trainer` or a subclass, which builds the parts.
            unset_keys: see :func:`read_config_and_unset`.
        """
        self._unset_keys = unset_keys
        solver, test = cfg.SOLVER, cfg.TEST
        self.config = cfg
        self._trainer = trainer
        self.seed = cfg.SEED
        self.output_dir = cfg.OUTPUT_DIR
        self.weights = cfg.MODEL.WEIGHTS
        self.device = cfg.MODEL.DEVICE
        self.train_datasets = cfg.DATASETS.TRAIN
        self.test_datasets = cfg.DATASETS.TEST
        self.test_workers = cfg.DATALOADER.NUM_WORKERS
        self.batch_size = solver.IMS_PER_BATCH
        self.num_parts = solver.ACCUMULATE
        self.reference_world_size = solver.REFERENCE_WORLD_SIZE
        self.max_iter = solver.MAX_ITER
        self.eval_period = test.EVAL_PERIOD
        self.checkpoint_period = solver.CHECKPOINT_PERIOD
        self.checkpoints_kept = solver.CHECKPOINTS_KEPT or None
        self.skip_nonfinite = solver.SKIP_NONFINITE
        self.figures = cfg.FIGURES
        self.writers = cfg.WRITERS
        self.log_period = 20  # as DefaultTrainer's
        self.parameter_log_period = cfg.MODEL.APA.LOG_PERIOD
        self.mixed_precision = solver.AMP.ENABLED
        self.amp_dtype = solver.AMP.DTYPE
        self.ema_decay = solver.EMA.DECAY if solver.EMA.ENABLED else None
        self.fsdp = solver.FSDP
        self.ddp = {
            "broadcast_buffers": False,
            "find_unused_parameters": solver.FIND_UNUSED_PARAMETERS,
        }
        self.trained = solver.TRAINED
        self.reinitialized = cfg.MODEL.REINITIALIZE
        self.transfer_from = cfg.MODEL.TRANSFER_FROM
        self.best_metric = test.BEST_METRIC
        self.patience = test.EARLY_STOPPING_PATIENCE
        self.subset = test.SUBSET
        self.test_time_augmentation = test.AUG.ENABLED
        self.precise_bn_iters = test.PRECISE_BN.NUM_ITER if test.PRECISE_BN.ENABLED else 0
        groups = test.FREQUENCY_GROUPS
        self.groups = FrequencyGroups.parse(groups) if groups else None
        self.count_from = test.COUNT_FROM or None
        self.extra_metrics = test.EXTRA_METRICS
        self.engine = test.ENGINE
        self.save_predictions = test.SAVE_PREDICTIONS
        self.imports = cfg.IMPORTS

    @classmethod
    def prepare(
        cls, cfg: CfgNode, trainer: type[DefaultTrainer], unset_keys: Sequence[str] = ()
    ) -> "YamlJob":
        """Register the config's datasets, choose an available device, and return the job."""
        register_datasets(
            cfg.DATASETS.LVIS_FORMAT,
            allow_outside_root=cfg.DATASETS.ALLOW_OUTSIDE_ROOT,
        )
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, cls.KEYS["device"])
        cfg.freeze()
        return cls(cfg, trainer, unset_keys)

    def _changed(self, values: Mapping[str, object]) -> "YamlJob":
        cfg = self.config.clone()
        cfg.defrost()
        for key, value in values.items():
            *nodes, name = key.split(".")
            reduce(getitem, nodes, cfg)[name] = value
        cfg.freeze()
        return YamlJob(cfg, self._trainer)

    def build_model(self) -> nn.Module:
        return self._trainer.build_model(self.config)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return self._trainer.build_optimizer(self.config, model)

    def build_lr_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return self._trainer.build_lr_scheduler(self.config, optimizer)

    def build_train_loader(self, num_workers: int | None = None) -> Iterable[list[dict]]:
        job = self
        if num_workers is not None:
            job = self._changed({"DATALOADER.NUM_WORKERS": num_workers})
        return self._trainer.build_train_loader(job.config)

    def build_test_mapper(self) -> Callable[[dict], dict]:
        return APADatasetMapper(self.config, is_train=False)

    def read_test_records(self, dataset_name: str) -> Sequence[dict]:
        proposals = None
        if self.config.MODEL.LOAD_PROPOSALS:
            if dataset_name not in self.test_datasets:
                raise UserError(
                    f"There are no precomputed proposals for {dataset_name}: set "
                    "MODEL.LOAD_PROPOSALS to False."
                )
            index = list(self.test_datasets).index(dataset_name)
            proposals = [self.config.DATASETS.PROPOSAL_FILES_TEST[index]]
        return get_dataset_records([dataset_name], filter_empty=False, proposal_files=proposals)

    @property
    def groups_text(self) -> str:
        return self.config.TEST.FREQUENCY_GROUPS

    def build_long_tail_evaluator(self, dataset_name: str, **kwargs) -> LongTailEvaluator:
        arguments = {
            "output_dir": self.test_folder(dataset_name),
            "subset": self.subset,
            **evaluator_arguments(self.config),
        }
        return LongTailEvaluator(dataset_name, **{**arguments, **kwargs})

    def build_trainer(self):
        return self._trainer(self.config)

    def test(self, model: nn.Module) -> OrderedDict:
        return self._trainer.test(self.config, model)

    def augmented(self, model: nn.Module) -> nn.Module:
        return GeneralizedRCNNWithTTA(self.config, model)

    def test_with_augmentation(self, model: nn.Module) -> OrderedDict:
        return self._trainer.test_with_TTA(self.config, model)

    def scaled(self, world_size: int) -> "YamlJob":
        cfg = self._trainer.auto_scale_workers(self.config, world_size)
        return self if cfg is self.config else YamlJob(cfg, self._trainer)

    def stages(self) -> list[Job]:
        if not self.config.SOLVER.DECOUPLED.MAX_ITER:
            return [self]
        stage = self._changed(yaml_second_stage(self.config))
        return [self, stage]

    def changed(self, values: Mapping[str, object]) -> "YamlJob":
        return self._changed({self.KEYS[name]: value for name, value in values.items()})

    def for_inference(self) -> "YamlJob":
        return self._changed({"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False})

    def with_calibration(self, method: str, strength: float) -> "YamlJob":
        key = self._calibration_key()
        return self._changed({key: method, f"{key}_STRENGTH": float(strength)})

    def calibration_overrides(self, method: str, strength: float) -> list[str]:
        key = self._calibration_key()
        return [f"{key} {method} {key}_STRENGTH {strength:g}"]

    def _calibration_key(self) -> str:
        return f"{score_node(self.config)}.CALIBRATION"

    def with_score_thresholds(self, thresholds: str) -> "YamlJob":
        return self._changed({"TEST.SCORE_THRESH_PER_GROUP": thresholds})

    def score_threshold_overrides(self, thresholds: str) -> list[str]:
        return [f"TEST.SCORE_THRESH_PER_GROUP {thresholds}"]

    def postprocessings(self) -> list[PostProcessing]:
        return find_postprocessing(self.config)

    def save_config(self, folder: str | None = None) -> None:
        with open_atomic(os.path.join(folder or self.output_dir, "config.yaml")) as file:
            file.write(self.config.dump())

    def is_long_tail(self, dataset_name: str) -> bool:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        return kind == "lvis" or (kind == "coco" and self.config.TEST.LONG_TAIL)

    def num_classes(self) -> tuple[int, str] | None:
        is_ours = is_apa_retinanet(self.config)
        node = "RETINANET" if is_ours else _NUM_CLASSES_NODES.get(meta_architecture(self.config))
        if node is None:
            return None
        return self.config.MODEL[node].NUM_CLASSES, f"MODEL.{node}.NUM_CLASSES"

    def unset_num_classes(self) -> list[str]:
        known = self.num_classes()
        return [known[1]] if known and known[1] in self._unset_keys else []

    def with_num_classes(self, number: int) -> "YamlJob":
        return self._changed(dict.fromkeys(self.unset_num_classes(), number))

    def metric_names(self) -> list[str] | None:
        has_masks, names = self.config.MODEL.MASK_ON, []
        for dataset, prefix in self.annotated_test_datasets().items():
            kind = MetadataCatalog.get(dataset).get("evaluator_type")
            if self.is_long_tail(dataset):
                names += self.long_tail_metric_names(has_masks=has_masks, prefix=prefix)
            elif kind in ("coco", "v3det"):
                iou_types = ["bbox", "segm"] if has_masks and kind == "coco" else ["bbox"]
                names += [f"{prefix}{t}/{m}" for t in iou_types for m in _COCO_METRICS]
            else:
                return None  # another evaluator, with unknown metrics
        return names

    def counted_datasets(self) -> Sequence[str]:
        name = get_value(self.config, self._calibration_key())
        if not name or not CALIBRATION_REGISTRY.get(name).needs_counts:
            return ()
        return self.train_datasets

    def read_class_counts(self) -> None:
        name = get_value(self.config, self._calibration_key())
        if not name or not CALIBRATION_REGISTRY.get(name).needs_counts:
            return
        if not self.train_datasets:
            raise UserError(
                f"{self._calibration_key()} {name} needs the image counts of the training set, but "
                "DATASETS.TRAIN is empty: set it."
            )
        for dataset in self.train_datasets:
            ensure_metadata(dataset)
        check_num_classes(self, self.train_datasets)
        CALIBRATION_REGISTRY.get(name).class_values(self.train_datasets)

    def check(self, *, eval_only: bool) -> None:
        cfg = self.config
        if not self.train_datasets and not eval_only:
            raise UserError("DATASETS.TRAIN is empty: set it to a dataset.")
        if eval_only:
            self.first_test_dataset()
        if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS and self.train_datasets:
            ensure_metadata(self.train_datasets[0])  # the model needs its class_image_count
        self._check_injection()
        check_scores(cfg)
        check_postprocessing(cfg)
        if cfg.TEST.AUG.ENABLED and meta_architecture(cfg) != "GeneralizedRCNN":
            raise UserError(
                "TEST.AUG.ENABLED works with MODEL.META_ARCHITECTURE GeneralizedRCNN only, got "
                f"{meta_architecture(cfg)}: set it to False."
            )

    def _check_injection(self) -> None:
        default = get_cfg()
        add_apa_config(default)
        name, settings = self.config.MODEL.META_ARCHITECTURE, self.config.MODEL.APA.INJECT
        injects = settings.ENABLED or name == APAInjected.__name__
        if not injects and settings != default.MODEL.APA.INJECT:
            raise UserError(
                "MODEL.APA.INJECT has no effect while MODEL.APA.INJECT.ENABLED is False: set it to "
                "True."
            )

    def check_model(self, model: nn.Module) -> None:
        head, second = self.config.MODEL.ROI_BOX_HEAD, self.config.SOLVER.DECOUPLED
        check_loss(self.config, model)
        shares = {
            "MODEL.ROI_BOX_HEAD.REPLAY.SHARE": head.REPLAY.SHARE,
            "SOLVER.DECOUPLED.REPLAY_SHARE": second.MAX_ITER and second.REPLAY_SHARE,
        }
        key = next((key for key, share in shares.items() if share), None)
        if key is not None and not any(isinstance(m, FeatureReplay) for m in model.modules()):
            raise UserError(
                f"{key} works in APAROIHeads and APACascadeROIHeads only: set it to 0, or "
                "MODEL.ROI_HEADS.NAME to one of these in a model with RoI heads."
            )

    def check_inference(self, model: nn.Module) -> None:
        check_postprocessing(self.config, model)

    def verify(self, results: Mapping) -> None:
        if len(self.config.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_results(self.config, results)
