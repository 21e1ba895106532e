"""detectron2's DefaultTrainer for long-tailed detection."""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..data import build_train_loader
from ..evaluation import COCOEvaluator, V3DetEvaluator
from ..evaluation.by_name import by_name
from ..modeling import build_model
from ..utils.log_file import FILE_ONLY
from .loading import CheckedLoader
from .optimizer import build_optimizer
from .setup.yaml import YamlJob
from .trainer import JobTrainer

logger = logging.getLogger(__name__)


class Trainer(JobTrainer, DefaultTrainer):
    """detectron2's DefaultTrainer for long-tailed detection, on a yaml config.

    Subclasses may override its class methods, as those of DefaultTrainer.

    Attributes:
        cfg: the config, scaled to the number of processes.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        super().__init__(YamlJob(self.cfg, type(self)))

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale a config as DefaultTrainer does, and further keys of apa_det.

        These are ``MODEL.APA.LOG_PERIOD``, the start of replay and the EMA decay. If the batch
        grows by a factor k, the decay is raised to the power k ("How to Scale Your EMA", Busbridge
        et al., 2023).
        """
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg:
            return cfg
        growth = num_workers / cfg.SOLVER.REFERENCE_WORLD_SIZE
        frozen = scaled.is_frozen()
        scaled.defrost()
        if cfg.MODEL.APA.LOG_PERIOD > 0:
            scaled.MODEL.APA.LOG_PERIOD = max(1, round(cfg.MODEL.APA.LOG_PERIOD / growth))
        replay = scaled.MODEL.ROI_BOX_HEAD.REPLAY
        replay.START_ITER = round(replay.START_ITER / growth)
        scaled.SOLVER.EMA.DECAY = cfg.SOLVER.EMA.DECAY**growth
        if frozen:
            scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See :func:`apa_det.build_model`."""
        model = build_model(cfg)
        logger.info("Model:\n%s", model, extra=FILE_ONLY)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`apa_det.engine.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """See :func:`apa_det.data.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> CheckedLoader:
        """See :meth:`Job.build_test_loader`."""
        job = YamlJob(cfg, cls)
        return job.build_test_loader(job.read_test_records(dataset_name))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Build the evaluator of a dataset, by its metadata's ``evaluator_type``.

        Raises:
            NotImplementedError: there is no evaluator for this type.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        job = YamlJob(cfg, cls)
        output_folder = output_folder or job.test_folder(dataset_name)
        if job.is_long_tail(dataset_name):
            return job.build_long_tail_evaluator(dataset_name, output_dir=output_folder)
        if kind == "coco":
            return COCOEvaluator(dataset_name, output_dir=output_folder)
        if kind == "v3det":
            return V3DetEvaluator(dataset_name, output_dir=output_folder)
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        if kind == "cityscapes_instance":
            return CityscapesInstanceEvaluator(dataset_name)
        raise NotImplementedError(
            f"There is no evaluator for the dataset {dataset_name} of evaluator_type {kind!r}."
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """Evaluate on the test sets, as DefaultTrainer does; classes go by name."""

        class ByName(cls):
            @classmethod
            def build_evaluator(_, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
                return by_name(cls.build_evaluator(cfg, dataset_name), dataset_name, model)

        if evaluators is not None:
            evaluators = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
            pairs = zip(evaluators, cfg.DATASETS.TEST, strict=True)
            evaluators = [by_name(evaluator, name, model) for evaluator, name in pairs]
        return super(Trainer, ByName).test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation; the keys of the results end in ``_TTA``."""
        logger.info("Running inference with test-time augmentation ...")
        folder, names = YamlJob(cfg, cls).test_folder, cfg.DATASETS.TEST
        evaluators = [cls.build_evaluator(cfg, name, folder(name, "_TTA")) for name in names]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{key}_TTA", value) for key, value in results.items())
