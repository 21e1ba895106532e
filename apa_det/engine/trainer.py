"""Trainers: detectron2's training loop and hooks, for any job."""

import copy
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, default_writers, hooks
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..config.ignored_keys import warn_of_ignored_keys
from ..data import APADatasetMapper, build_train_loader
from ..data.class_names import align_training_sets
from ..errors import UserError
from ..evaluation import V3DetEvaluator
from ..evaluation.by_name import by_name, set_model_classes
from ..modeling import build_model
from ..modeling.losses import look_up_frequencies
from .checkpointer import ShardedCheckpointer, StrictCheckpointer, class_arguments
from .ema import build_ema
from .freezing import train_only
from .hooks import BestCheckpointer, LambdaKappaPlotter, LambdaKappaWriter
from .job import Job
from .loading import CheckedLoader, LoadingError
from .optimizer import build_optimizer
from .parallel import broadcast, full_state, load_full_states, replicate, shard
from .preemption import PreemptionHook
from .setup.checks import check_training_sets
from .setup.yaml import YamlJob
from .step import StepTrainer
from .testing import SubsetTest, without_nan

logger = logging.getLogger(__name__)


def _of_step(name: str) -> property:
    return property(
        lambda trainer: getattr(trainer._trainer, name),
        lambda trainer, value: setattr(trainer._trainer, name, value),
    )


class JobTrainer(TrainerBase):
    """Trains and evaluates a job.

    Does what detectron2's DefaultTrainer does, and the following, as the job says: evaluate a
    subset of the images during training, log λ and κ, keep the best model by a metric, average the
    weights, accumulate gradients, shard the model. Several processes and mixed precision also work
    without CUDA. On SIGTERM, it saves a checkpoint and exits.

    Attributes:
        job: the job, scaled to the number of processes.
        ema: the averaged model, which is the one evaluated; None without ``job.ema_decay``.
        checkpointer: loads and saves the state of the training.
    """

    def __init__(self, job: Job):
        TrainerBase.__init__(self)  # skips DefaultTrainer's, which builds everything from a cfg
        for name in ("detectron2", "apa_det"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        self.job = job = job.scaled(comm.get_world_size())
        model = job.build_model()
        job.check_model(model)
        set_model_classes(model, align_training_sets(job.train_datasets))
        if job.trained:
            train_only(model, job.trained, job.KEYS["trained"])
        self._device = next(model.parameters()).device
        self.ema = None if job.ema_decay is None else build_ema(model, job.ema_decay)
        self._sharded = job.fsdp and comm.get_world_size() > 1
        if self._sharded:
            self._tested = copy.deepcopy(model).cpu()
            shard(model, job.KEYS["fsdp"])
            if self.ema is not None:
                shard(self.ema.module, job.KEYS["fsdp"])
        optimizer = job.build_optimizer(model)
        warn_of_ignored_keys(job.config, model)
        data_loader = self.build_job_loader()
        look_up_frequencies(model)  # fails if they are unknown
        if self._sharded:
            load_full_states(optimizer)
        else:
            model = replicate(model, **job.ddp)
            self._tested = model if self.ema is None else self.ema.module
        amp_dtype = torch.float16 if self._device.type == "cuda" else torch.bfloat16
        self._trainer = StepTrainer(
            *(model, data_loader, optimizer),
            num_parts=job.num_parts,
            precision=amp_dtype if job.mixed_precision else None,
            unused_key=job.KEYS["find_unused_parameters"],
        )
        self.scheduler = job.build_lr_scheduler(optimizer)
        checkpointer = ShardedCheckpointer if self._sharded else StrictCheckpointer
        self.checkpointer = checkpointer(
            model,
            job.output_dir,
            trainer=weakref.proxy(self),
            reinitialized=job.reinitialized,
            keys=job.KEYS,
            **class_arguments(job),
        )
        if self.ema is not None:
            self.checkpointer.add_checkpointable("ema", self.ema)
        self.start_iter = 0
        self.max_iter = job.max_iter
        self._subset_test: SubsetTest | None = None  # built on first use
        self._last_eval_results = OrderedDict()
        self.register_hooks(self.build_hooks())

    model, optimizer, data_loader = map(_of_step, ("model", "optimizer", "data_loader"))

    def build_job_loader(self) -> Iterable[list[dict]]:
        """Build the training loader and check the datasets that it read."""
        loader = self.job.build_train_loader()
        check_training_sets(self.job)
        return loader

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of the output folder if ``resume``, else the job's weights.

        Raises:
            UserError: the last checkpoint does not fill the model, or some processes do not see it.
        """
        last = self.checkpointer.get_checkpoint_file()
        if resume and len(set(comm.all_gather(last))) > 1:
            raise UserError(
                f"The machines see different last checkpoints in {self.job.output_dir}: set "
                f"{self.job.KEYS['output_dir']} to a folder that they share, to use --resume."
            )
        self.checkpointer.strict = resume and bool(last)
        self.checkpointer.resume_or_load(self.job.weights, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1
        if self.ema is not None and self.start_iter > 0 and self.ema.n_averaged == 0:
            logger.info("%s has no averaged weights: the average starts now.", last)

    def train(self) -> OrderedDict:
        """Train to ``max_iter`` and return the last results; empty except in the main process."""
        TrainerBase.train(self, self.start_iter, self.max_iter)
        self.job.verify(self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except LoadingError:
            self.iter -= 1  # the last finished one, also for the hooks after training
            if self.iter >= self.start_iter:
                self._save_for_resume()
            raise
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _save_for_resume(self) -> None:
        logger.warning("Saving a checkpoint. Fix the data and continue with --resume.")
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        comm.synchronize()  # no process ends before it is written

    def state_dict(self) -> dict:
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of training scalars."""
        return default_writers(self.job.output_dir, self.max_iter)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Build the hooks, in the order in which they run after each step."""
        job, is_main = self.job, comm.is_main_process()
        self._preemption = PreemptionHook(self.checkpointer, self._device)
        built = [hooks.IterationTimer(), hooks.LRScheduler(), self._preemption]
        if job.precise_bn_iters and get_bn_modules(self.model):
            loader = job.build_train_loader(num_workers=0)
            precise = (job.eval_period, self.model, loader, job.precise_bn_iters)
            built.append(hooks.PreciseBN(*precise))
        if is_main or self._sharded:  # saving a sharded model takes all processes
            period, kept = job.checkpoint_period, job.checkpoints_kept
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, period, max_to_keep=kept))
        built.append(hooks.EvalHook(job.eval_period, self._evaluate))
        if job.test_time_augmentation:
            built.append(hooks.EvalHook(0, self._evaluate_with_augmentation))
        if job.best_metric and is_main:
            best = (job.eval_period, self._tested, job.output_dir, job.best_metric)
            names = self.checkpointer.class_names
            built.append(BestCheckpointer(*best, class_names=names))
        if job.parameter_log_period > 0 and (is_main or self._sharded):
            built.append(LambdaKappaWriter(self.model, job.parameter_log_period))
        if is_main:
            built.append(hooks.PeriodicWriter(self.build_writers(), period=job.log_period))
        if job.parameter_log_period > 0 and is_main:
            period = job.eval_period or job.checkpoint_period
            built.append(LambdaKappaPlotter(self.model, job.output_dir, period))
        return built

    @contextmanager
    def _model_to_test(self) -> Iterator[nn.Module]:
        """Return the same unsharded model in every process: the averaged one, if there is one."""
        if self._sharded:
            source = self.model if self.ema is None else self.ema.module
            self._tested.load_state_dict(full_state(source.state_dict()))
            self._tested.to(self._device)
        # Batch norm statistics differ between processes; checkpoints hold the main process's.
        broadcast(self._tested.buffers())
        with self._preemption.saving_at_once():
            try:
                yield self._tested
            except LoadingError:
                if self.iter + 1 < self.max_iter:
                    self._save_for_resume()
                raise
        if self._sharded:
            self._tested.cpu()

    def _evaluate(self) -> dict[str, float]:
        with self._model_to_test() as model:
            if self.job.subset and self.iter + 1 < self.max_iter:
                return self._evaluate_subset(model)
            self._last_eval_results = self.job.test(model)
            return without_nan(self._last_eval_results)

    def _evaluate_with_augmentation(self) -> dict[str, float]:
        with self._model_to_test() as model:
            return without_nan(self.job.test_with_augmentation(model))

    def _evaluate_subset(self, model: nn.Module) -> dict[str, float]:
        if self._subset_test is None:
            self._subset_test = SubsetTest(self.job)
        return without_nan(self._subset_test(model))


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
        """Scale a config as DefaultTrainer does, and ``MODEL.APA.LOG_PERIOD`` and the EMA decay.

        If the batch grows by a factor k, the decay is raised to the power k ("How to Scale Your
        EMA", Busbridge et al., 2023).
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
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See :func:`apa_det.build_model`."""
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
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
        """See :func:`detectron2.data.build_detection_test_loader`."""
        mapper = APADatasetMapper(cfg, is_train=False)
        return CheckedLoader(build_detection_test_loader(cfg, dataset_name, mapper=mapper))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Build the evaluator of a dataset, by its metadata's ``evaluator_type``.

        Raises:
            NotImplementedError: there is no evaluator for this type.
        """
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        job = YamlJob(cfg, cls)
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
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{key}_TTA", value) for key, value in results.items())
