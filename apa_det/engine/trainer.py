"""detectron2's training loop and hooks, for any job."""

import copy
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import TrainerBase, default_writers, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config.ignored_keys import warn_of_ignored_keys
from ..data.class_names import align_training_sets
from ..data.stream import TrainLoader
from ..modeling.losses import look_up_frequencies
from ..utils.seeding import seed_all
from .checkpointer import ShardedCheckpointer, StrictCheckpointer, class_arguments
from .early_stopping import EarlyStopping
from .ema import build_ema
from .figures.figure_writer import FigureWriter
from .freezing import train_only
from .hooks import (
    BestCheckpointer,
    LambdaKappaPlotter,
    LambdaKappaWriter,
    PeriodicWriter,
    PreciseBN,
)
from .job import Job, autocast_dtype
from .loop import TrainingLoop
from .model_classes import name_classes
from .parallel import broadcast, full_state, load_full_states, replicate, shard
from .preemption import PreemptionHook
from .resuming import load_last
from .run_folder import (
    EVALUATION_TIME,
    FINAL,
    recorded_results,
    truncate_metrics,
    was_evaluated,
)
from .saving import PeriodicCheckpointer
from .setup.checks import check_training_sets
from .step import StepTrainer
from .testing import SubsetTest, without_nan
from .writers import WRITER_REGISTRY

logger = logging.getLogger(__name__)


def _of_step(name: str) -> property:
    return property(
        lambda trainer: getattr(trainer._trainer, name),
        lambda trainer, value: setattr(trainer._trainer, name, value),
    )


class JobTrainer(TrainingLoop):
    """Trains and evaluates a job.

    Does what detectron2's DefaultTrainer does, and the following, as the job says: evaluate a
    subset of the images during training, log λ and κ, keep the best model by a metric, average the
    weights, accumulate gradients, shard the model. Several processes and mixed precision also work
    without CUDA. On SIGTERM, SIGINT and SIGHUP, it saves a checkpoint and exits.

    Attributes:
        job: the job, scaled to the number of processes.
        ema: the averaged model, which is the one evaluated; None without ``job.ema_decay``.
        checkpointer: loads and saves the state of the training.
        reuses_results: take the results of a finished training from ``metrics.json``.
    """

    reuses_results = True

    def __init__(self, job: Job):
        TrainerBase.__init__(self)  # skips DefaultTrainer's, which builds everything from a cfg
        for name in ("detectron2", "apa_det"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        self._draws_seed = job.seed < 0
        if self._draws_seed:
            job = job.changed({"seed": comm.shared_random_seed()})
            seed_all_rng(job.seed + comm.get_rank())  # as setup_job does
            logger.info("%s is negative: using %d.", job.KEYS["seed"], job.seed)
        self.job = job = job.scaled(comm.get_world_size())
        model = job.build_model()
        job.check_model(model)
        job.check_inference(model)
        name_classes(model, align_training_sets(job.train_datasets))
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
        self._trainer = StepTrainer(
            *(model, data_loader, optimizer),
            num_parts=job.num_parts,
            precision=autocast_dtype(job, self._device),
            unused_key=job.KEYS["find_unused_parameters"],
            skip_nonfinite=job.skip_nonfinite,
            skip_key=job.KEYS["skip_nonfinite"],
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
        self._evaluated_after = -1  # number of iterations before the last whole evaluation
        self._resumed_from = ""  # name of the checkpoint
        self._stored_seed: int | None = None  # in it
        self._figures: FigureWriter | None = None
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
            UserError: see :func:`load_last`.
        """
        if resume:
            name, extra = load_last(self.checkpointer, self.job.KEYS["output_dir"])
            self._resumed_from = name
        if not self._resumed_from:
            if not self.job.weights:
                key = self.job.KEYS["weights"]
                logger.info("%s is empty: the model starts from random weights.", key)
            self.checkpointer.strict = False
            self.checkpointer.resume_or_load(self.job.weights, resume=False)
            return
        self.start_iter = self.iter + 1
        self.checkpointer.saved_iteration = self.iter
        if self._stored_seed not in (None, self.job.seed):
            self._continue_seed()
        if 0 < self.job.patience <= extra.get("stopped_early", 0):
            self.max_iter = self.start_iter
        self._fast_forward()
        if self.ema is not None and self.ema.n_averaged == 0:
            logger.info("%s has no averaged weights: the average starts now.", name)

    def _continue_seed(self) -> None:
        key, seed = self.job.KEYS["seed"], self._stored_seed
        if not self._draws_seed:
            logger.warning(
                "%s is %d, but %s was trained with %d: the images come in another order now.",
                *(key, self.job.seed, self._resumed_from, seed),
            )
            return
        logger.info("%s is negative: using %d, as before the stop.", key, seed)
        self.job = self.job.changed({"seed": seed})
        self.data_loader = self.build_job_loader()

    def _fast_forward(self) -> None:
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.start = self.start_iter
        else:
            logger.warning(
                "The training loader is a %s, not the one of apa_det.data.build_train_loader: the "
                "training continues with other images than without the stop.",
                type(self.data_loader).__name__,
            )

    def train(self) -> OrderedDict:
        """Train to ``max_iter`` and return the last results; empty except in the main process.

        If the training is finished already, only what is missing of its files and results is made.
        """
        if self.start_iter < self.max_iter or not self._resumed_from:
            if self.start_iter and comm.is_main_process():
                truncate_metrics(self.job.output_dir, self.start_iter)
            self.run_loop(self.start_iter, self.max_iter)
        else:
            self._finish()
        self.job.verify(self._last_eval_results)
        return self._last_eval_results

    def _finish(self) -> None:
        folder, done = self.job.output_dir, self.start_iter
        logger.info("The training in %s is finished, after %d iterations.", folder, done)
        if self._resumed_from != FINAL:
            self.checkpointer.save("model_final", iteration=self.iter)
        results = recorded_results(folder, done) if comm.is_main_process() else None
        if self.reuses_results and comm.all_gather(bool(results))[0]:
            logger.info("Its results are in metrics.json, so they are not computed again.")
            self._last_eval_results = OrderedDict(results or {})
            return
        if results:
            truncate_metrics(folder, done, keep_results=False)
        self.run_loop(done, done)

    def make_up(self) -> None:
        """Repeat the evaluation after the last iteration before a resume, if it was cut off."""
        done, period = self.start_iter, self.job.eval_period
        if not (self._resumed_from and period > 0 and done % period == 0 and done < self.max_iter):
            return
        folder = self.job.output_dir
        finished = comm.all_gather(comm.is_main_process() and was_evaluated(folder, done - 1))[0]
        kinds = (PreciseBN,)  # a checkpoint of a signal is older than its statistics
        if not finished:
            logger.info("The evaluation after %d iterations was not finished: repeating it.", done)
            kinds = (PreciseBN, hooks.EvalHook, BestCheckpointer, EarlyStopping, PeriodicWriter)
        self.iter = self.storage.iter = done - 1
        for hook in self._hooks:
            if isinstance(hook, kinds):
                hook.after_step()
        self.iter = self.storage.iter = done

    def run_step(self) -> None:
        seed_all(self.job.seed, 1, comm.get_rank(), self.iter)  # as after a resume
        self._trainer.iter = self.iter
        # Functions of TorchScript round differently once they are optimized, after some calls.
        with torch.jit.optimized_execution(self._device.type != "cpu"):
            self._trainer.run_step()
        if self.ema is not None and self._trainer.has_updated:
            self.ema.update_parameters(self.model)

    def state_dict(self) -> dict:
        state = {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}
        return {**state, "seed": self.job.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        self._stored_seed = state_dict.get("seed")

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of training scalars: detectron2's, and those of ``job.writers``."""
        others = [WRITER_REGISTRY.get(name)(self.job) for name in self.job.writers]
        return [*default_writers(self.job.output_dir, self.max_iter), *others]

    def build_hooks(self) -> list[hooks.HookBase]:
        """Build the hooks, in the order in which they run after each step."""
        job, is_main = self.job, comm.is_main_process()
        self._preemption = PreemptionHook(self.checkpointer, self._trainer)
        built = [hooks.IterationTimer(), hooks.LRScheduler(), self._preemption]
        if job.precise_bn_iters and get_bn_modules(self.model):
            built.append(PreciseBN(job.eval_period, self.model, job.precise_bn_iters))
        if is_main or self._sharded:  # saving a sharded model takes all processes
            period, kept = job.checkpoint_period, job.checkpoints_kept
            built.append(PeriodicCheckpointer(self.checkpointer, period, kept))
        built.append(hooks.EvalHook(job.eval_period, self._evaluate))
        if job.test_time_augmentation:
            built.append(hooks.EvalHook(0, self._evaluate_with_augmentation))
        best = None
        if job.best_metric and is_main:
            names = self.checkpointer.class_names
            best = (job.eval_period, self._tested, job.output_dir, job.best_metric)
            key = job.KEYS["best_metric"]
            best = BestCheckpointer(*best, class_names=names, key=key)
            built.append(best)
        if job.patience:
            settings = (job.patience, job.eval_period, self.checkpointer, best)
            built.append(EarlyStopping(*settings, key=job.KEYS["patience"]))
        if job.parameter_log_period > 0 and (is_main or self._sharded):
            built.append(LambdaKappaWriter(self.model, job.parameter_log_period))
        if is_main:
            built.append(PeriodicWriter(self.build_writers(), period=job.log_period))
        if job.parameter_log_period > 0 and is_main:
            period = job.eval_period or job.checkpoint_period
            built.append(LambdaKappaPlotter(self.model, job.output_dir, period))
        if job.figures and is_main:
            self._figures = FigureWriter(job, self._trainer)
            built.append(self._figures)
        return built

    @contextmanager
    def _model_to_test(self) -> Iterator[nn.Module]:
        """Return the same unsharded model in every process: the averaged one, if there is one."""
        if self._sharded:
            is_saved = self.checkpointer.saved_iteration == self.iter
            if not is_saved and self.iter + 1 < self.max_iter:  # a signal will not do it
                self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            source = self.model if self.ema is None else self.ema.module
            self._tested.load_state_dict(full_state(source.state_dict()))
            self._tested.to(self._device)
        # Batch norm statistics differ between processes; checkpoints hold the main process's.
        broadcast(self._tested.buffers())
        with self._preemption.saving_at_once():
            yield self._tested
        if self._sharded:
            self._tested.cpu()

    @contextmanager
    def evaluated_model(self) -> Iterator[nn.Module]:
        """Return the model of the last evaluation, for use in this process alone."""
        model = self._tested
        if isinstance(model, DistributedDataParallel):  # which would wait for other processes
            model = model.module
        try:
            yield model.to(self._device)
        finally:
            if self._sharded:
                model.cpu()

    @property
    def figure_failure(self) -> Exception | None:
        """The exception of a figure that is not drawn because of a bug; None: none."""
        return None if self._figures is None else self._figures.failure

    def _evaluate(self) -> dict[str, float]:
        """Return the results and the time of the evaluation in seconds; {} if there is none."""
        start = time.perf_counter()
        with self._model_to_test() as model:
            results = without_nan(self._results(model))
        return {**results, EVALUATION_TIME: time.perf_counter() - start} if results else {}

    def _results(self, model: nn.Module) -> dict[str, dict]:
        if self.job.subset and self.iter + 1 < self.max_iter:
            if self._subset_test is None:
                self._subset_test = SubsetTest(self.job)
            return self._subset_test(model)
        done = min(self.iter + 1, self.max_iter)
        if self._evaluated_after != done:  # early stopping evaluates the last model before
            self._last_eval_results = self.job.test(model)
            self._evaluated_after = done
        return self._last_eval_results

    def _evaluate_with_augmentation(self) -> dict[str, float]:
        with self._model_to_test() as model:
            return without_nan(self.job.test_with_augmentation(model))
