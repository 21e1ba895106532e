"""The trainer: detectron2's, with the long-tail evaluation and APA's hooks."""

import copy
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    print_csv_format,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..data import build_train_loader
from ..evaluation import V3DetEvaluator
from ..modeling.losses import look_up_frequencies
from .checkpointer import StrictCheckpointer, class_arguments
from .ema import build_ema
from .evaluation import SubsetTest, build_long_tail_evaluator, is_long_tail, without_nan
from .freezing import train_only
from .hooks import BestCheckpointer, LambdaKappaPlotter, LambdaKappaWriter
from .optimizer import build_optimizer
from .parallel import (
    ShardedCheckpointer,
    broadcast,
    full_state,
    replicate,
    shard,
    take_full_states,
)
from .preemption import PreemptionHook
from .setup.checks import (
    check_num_classes,
    require_class_counts,
    require_class_loss,
    warn_of_other_classes,
)
from .step import StepTrainer

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer for long-tailed detection.

    It evaluates datasets of LVIS format by :class:`LongTailEvaluator`, a few of their pictures
    while it trains if ``TEST.SUBSET`` says so, writes λ and κ every ``MODEL.APA.LOG_PERIOD``
    iterations, builds the optimizer by :func:`build_optimizer`, keeps the best model by
    ``TEST.BEST_METRIC``, and trains in several processes and in mixed precision without CUDA too.
    A step's pictures may go through the model in parts (``SOLVER.ACCUMULATE``), and on SIGTERM it
    saves a checkpoint before it exits.

    Attributes:
        ema: with ``SOLVER.EMA``, the averaged model, which is evaluated; else None.
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
        require_class_loss(cfg, model)
        if cfg.SOLVER.TRAINED:
            train_only(model, cfg.SOLVER.TRAINED, "SOLVER.TRAINED")
        self._device = next(model.parameters()).device
        self.ema = build_ema(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self._sharded = cfg.SOLVER.FSDP and comm.get_world_size() > 1
        if self._sharded:
            self._tested = copy.deepcopy(model).cpu()
            shard(model)
            if self.ema is not None:
                shard(self.ema.module)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        look_up_frequencies(model)  # says so if they are unknown
        if self._sharded:
            take_full_states(optimizer)
        else:
            model = replicate(model, find_unused_parameters=cfg.SOLVER.FIND_UNUSED_PARAMETERS)
            self._tested = model if self.ema is None else self.ema.module
        amp_dtype = torch.float16 if self._device.type == "cuda" else torch.bfloat16
        self._trainer = StepTrainer(
            *(model, data_loader, optimizer),
            num_parts=cfg.SOLVER.ACCUMULATE,
            precision=amp_dtype if cfg.SOLVER.AMP.ENABLED else None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        checkpointer = ShardedCheckpointer if self._sharded else StrictCheckpointer
        self.checkpointer = checkpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            reinitialized=cfg.MODEL.REINITIALIZE,
            **class_arguments(cfg.DATASETS.TRAIN, cfg.MODEL.TRANSFER_FROM),
        )
        if self.ema is not None:
            self.checkpointer.add_checkpointable("ema", self.ema)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._subset_test: SubsetTest | None = None  # made when it is first needed
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's.

        Raises:
            ValueError: the checkpoint to resume from fits in part, or not all processes see it.
        """
        last = self.checkpointer.get_checkpoint_file()
        if resume and len(set(comm.all_gather(last))) > 1:
            raise ValueError(
                f"Not all machines see the same last checkpoint in {self.cfg.OUTPUT_DIR}: --resume "
                "on several machines needs an OUTPUT_DIR that all of them share."
            )
        self.checkpointer.strict = resume and bool(last)
        super().resume_or_load(resume=resume)
        if self.ema is not None and self.start_iter > 0 and self.ema.n_averaged == 0:
            logger.info("%s holds no average of the weights: it starts from here.", last)

    def run_step(self) -> None:
        super().run_step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """DefaultTrainer's, which scales the other keys that count iterations too.

        ``MODEL.APA.LOG_PERIOD`` is divided as its periods are. The decay of the averaged weights is
        taken to the power of the batch's growth ("How to Scale Your EMA", Busbridge et al., 2023).
        """
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg:
            return cfg
        growth = num_workers / cfg.SOLVER.REFERENCE_WORLD_SIZE
        frozen = scaled.is_frozen()
        scaled.defrost()
        if cfg.MODEL.APA.LOG_PERIOD > 0:
            scaled.MODEL.APA.LOG_PERIOD = max(1, round(cfg.MODEL.APA.LOG_PERIOD / growth))
        scaled.SOLVER.EMA.DECAY = cfg.SOLVER.EMA.DECAY**growth
        if frozen:
            scaled.freeze()
        return scaled

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`apa_det.engine.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """See :func:`apa_det.data.build_train_loader`; of as many classes as the model's."""
        loader = build_train_loader(cfg)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)  # the loader has read them by now
        require_class_counts(cfg)
        warn_of_other_classes(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
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
        """DefaultTrainer's hooks, and those of this trainer: before the writers, but for the one
        that draws what was written."""
        cfg = self.cfg
        built = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.LRScheduler):
                self._preemption = PreemptionHook(self.checkpointer, self._device)
                built += [hook, self._preemption]
            elif isinstance(hook, hooks.EvalHook):
                if self._sharded and not comm.is_main_process():  # all give their parts
                    period = cfg.SOLVER.CHECKPOINT_PERIOD
                    built.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
                built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
                built += self._hooks_after_evaluation()
            else:
                built.append(hook)
        if cfg.MODEL.APA.LOG_PERIOD > 0 and comm.is_main_process():
            period = cfg.TEST.EVAL_PERIOD or cfg.SOLVER.CHECKPOINT_PERIOD
            built.append(LambdaKappaPlotter(self.model, cfg.OUTPUT_DIR, period))
        return built

    def _hooks_after_evaluation(self) -> list[hooks.HookBase]:
        cfg, added = self.cfg, []
        if cfg.TEST.AUG.ENABLED:
            added.append(hooks.EvalHook(0, self._evaluate_with_TTA))
        if cfg.TEST.BEST_METRIC and comm.is_main_process():
            added.append(
                BestCheckpointer(
                    *(cfg.TEST.EVAL_PERIOD, self._tested, cfg.OUTPUT_DIR, cfg.TEST.BEST_METRIC),
                    class_names=self.checkpointer.class_names,
                )
            )
        if cfg.MODEL.APA.LOG_PERIOD > 0 and (self._sharded or comm.is_main_process()):
            added.append(LambdaKappaWriter(self.model, cfg.MODEL.APA.LOG_PERIOD))
        return added

    @contextmanager
    def _model_to_test(self) -> Iterator[nn.Module]:
        """The same model in every process: the averaged one if there is one, and never sharded."""
        if self._sharded:
            source = self.model if self.ema is None else self.ema.module
            self._tested.load_state_dict(full_state(source.state_dict()))
            self._tested.to(self._device)
        # Processes train with batch norm statistics of their own. Checkpoints hold the main one's.
        broadcast(self._tested.buffers())
        with self._preemption.saving_at_once():
            yield self._tested
        if self._sharded:
            self._tested.cpu()

    def _evaluate(self) -> dict[str, float]:
        with self._model_to_test() as model:
            if self.cfg.TEST.SUBSET and self.iter + 1 < self.max_iter:
                return self._evaluate_subset(model)
            self._last_eval_results = self.test(self.cfg, model)
            return without_nan(self._last_eval_results)

    def _evaluate_with_TTA(self) -> dict[str, float]:
        with self._model_to_test() as model:
            return without_nan(self.test_with_TTA(self.cfg, model))

    def _evaluate_subset(self, model: nn.Module) -> dict[str, float]:
        if self._subset_test is None:
            self._subset_test = SubsetTest(self.cfg, os.path.join(self.cfg.OUTPUT_DIR, "inference"))
        results = self._subset_test(model)
        if comm.is_main_process():
            print_csv_format(results)
        return without_nan(results)
