"""The trainer: detectron2's, with the long-tail evaluation and APA's hooks."""

import logging
import math
import os
import weakref
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    print_csv_format,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..evaluation import BestCheckpointer, LambdaKappaWriter, V3DetEvaluator
from ..modeling.losses import get_scarce_classes
from .checks import check_num_classes, warn_of_other_classes
from .cpu_amp import CPUAMPTrainer
from .evaluation import SubsetTest, build_long_tail_evaluator, is_long_tail
from .loading import StrictCheckpointer
from .optimizer import build_optimizer

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer for long-tailed detection.

    It evaluates datasets of LVIS format by :class:`LongTailEvaluator`, a few of their pictures
    while it trains if ``TEST.SUBSET`` says so, writes λ and κ every ``MODEL.APA.LOG_PERIOD``
    iterations, builds the optimizer by :func:`build_optimizer`, keeps the best model by
    ``TEST.BEST_METRIC``, and trains in several processes and in mixed precision without CUDA too.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own steps, in its order. It cannot be called: it hands every model to
        # DistributedDataParallel as one on a GPU, and loads checkpoints that fit in part.
        TrainerBase.__init__(self)
        for name in ("detectron2", "apa_det"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        on_gpu = next(model.parameters()).is_cuda
        model = create_ddp_model(
            model,
            broadcast_buffers=False,
            device_ids=[comm.get_local_rank()] if on_gpu else None,
        )
        amp_trainer = AMPTrainer if on_gpu else CPUAMPTrainer
        trainer = amp_trainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = StrictCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._subset_test: SubsetTest | None = None  # made when it is first needed
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's; resuming raises a ValueError where the checkpoint fits in part."""
        self.checkpointer.strict = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume=resume)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`apa_det.engine.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """detectron2's loader, of datasets with as many classes as the model."""
        loader = super().build_train_loader(cfg)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)  # the loader has read them by now
        if cfg.MODEL.ROI_BOX_HEAD.USE_DROP_LOSS:
            get_scarce_classes(cfg.DATASETS.TRAIN)  # says so if they are unknown
        warn_of_other_classes(cfg)
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator of a dataset, by its metadata's ``evaluator_type``.

        Raises:
            NotImplementedError: a type that has none here.
        """
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if is_long_tail(cfg, dataset_name):
            return build_long_tail_evaluator(cfg, dataset_name, output_folder)
        if kind == "coco":
            return COCOEvaluator(dataset_name, output_dir=output_folder)
        if kind == "v3det":
            return V3DetEvaluator(dataset_name, output_dir=output_folder)
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        if kind == "cityscapes_instance":
            return CityscapesInstanceEvaluator(dataset_name)
        raise NotImplementedError(
            f"No evaluator for the dataset {dataset_name} of evaluator_type {kind}."
        )

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with test-time augmentation; the keys of the results end in ``_TTA``."""
        logger.info("Running inference with test-time augmentation ...")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{key}_TTA", value) for key, value in results.items())

    def build_hooks(self) -> list[hooks.HookBase]:
        """DefaultTrainer's hooks, and before the writers those of this trainer."""
        cfg = self.cfg
        built = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
                built += self._hooks_after_evaluation()
            else:
                built.append(hook)
        return built

    def _hooks_after_evaluation(self) -> list[hooks.HookBase]:
        cfg, added = self.cfg, []
        if cfg.TEST.AUG.ENABLED:
            added.append(
                hooks.EvalHook(0, lambda: _without_nan(self.test_with_TTA(self.cfg, self.model)))
            )
        if comm.is_main_process():
            if cfg.TEST.BEST_METRIC:
                added.append(
                    BestCheckpointer(
                        cfg.TEST.EVAL_PERIOD, self.model, cfg.OUTPUT_DIR, cfg.TEST.BEST_METRIC
                    )
                )
            if cfg.MODEL.APA.LOG_PERIOD > 0:
                added.append(LambdaKappaWriter(self.model, cfg.MODEL.APA.LOG_PERIOD))
        return added

    def _evaluate(self) -> dict[str, float]:
        _broadcast_buffers(self.model)
        if self.cfg.TEST.SUBSET and self.iter + 1 < self.max_iter:
            return self._evaluate_subset()
        self._last_eval_results = self.test(self.cfg, self.model)
        return _without_nan(self._last_eval_results)

    def _evaluate_subset(self) -> dict[str, float]:
        if self._subset_test is None:
            self._subset_test = SubsetTest(self.cfg, os.path.join(self.cfg.OUTPUT_DIR, "inference"))
        results = self._subset_test(self.model)
        if comm.is_main_process():
            print_csv_format(results)
        return _without_nan(results)


def _broadcast_buffers(model: nn.Module) -> None:
    """Give every process the batch norm statistics of the main one, which checkpoints hold.

    Processes train with statistics of their own; evaluation must be of one model.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _without_nan(results: dict) -> dict[str, float]:
    """The flat results, ``{"bbox/AP": …}``; NaN is no JSON, so what is NaN is left out."""
    flat = flatten_results_dict(results)
    return {name: value for name, value in flat.items() if not math.isnan(value)}
