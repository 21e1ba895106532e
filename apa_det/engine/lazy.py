"""Training and evaluation of what a LazyConfig describes."""

import logging
import os

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import create_ddp_model, default_writers, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..modeling.losses import look_up_frequencies
from .checkpointer import StrictCheckpointer, class_arguments
from .decoupled import lazy_stages, resumed_stage, stages_to_train
from .ema import build_ema
from .evaluation import without_nan
from .freezing import require_matches, train_only
from .hooks import BestCheckpointer, LambdaKappaPlotter, LambdaKappaWriter
from .optimizer import clip_gradients
from .parallel import broadcast
from .preemption import PreemptionHook
from .setup.checks import warn_of_other_classes
from .setup.lazy import check_num_classes, dataset_names
from .step import StepTrainer

__all__ = ["evaluate_lazy", "load_lazy", "train_lazy"]

logger = logging.getLogger(__name__)


def evaluate_lazy(cfg: DictConfig, *, resume: bool = False) -> dict:
    """Evaluate ``train.init_checkpoint`` on ``dataloader.test`` by ``dataloader.evaluator``.

    Args:
        cfg: the config, as :func:`apa_det.engine.setup_lazy` gives it.
        resume: take the last checkpoint of ``train.output_dir`` if there is one.

    Returns:
        The evaluator's results; empty but in the main process.

    Raises:
        ValueError: the file lacks a parameter of the model, or has it in another shape.
    """
    model = load_lazy(cfg, resume=resume)
    return _test(cfg, model, instantiate(cfg.dataloader.evaluator))


def load_lazy(cfg: DictConfig, *, resume: bool = False) -> nn.Module:
    """The model, filled with what :func:`evaluate_lazy` evaluates."""
    if resume:
        configs = lazy_stages(cfg)
        cfg = configs[resumed_stage([stage.train.output_dir for stage in configs])]
    model = instantiate(cfg.model).to(cfg.train.device)
    checkpointer = StrictCheckpointer(model, cfg.train.output_dir, averaged=_uses_ema(cfg))
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    return model


def train_lazy(cfg: DictConfig, *, resume: bool = False) -> dict:
    """Train ``model`` on ``dataloader.train``, and evaluate it as :func:`evaluate_lazy` does.

    With ``train.decoupled``, a second stage trains the classifier alone.

    Args:
        cfg: the config, as :func:`apa_det.engine.setup_lazy` gives it.
        resume: go on from the last checkpoint of ``train.output_dir`` if there is one.

    Returns:
        The results of the last evaluation. Empty without ``dataloader.evaluator``, and but in the
        main process.

    Raises:
        ValueError: ``train.decoupled`` does not fit the config or the model; before any training.
    """
    configs = lazy_stages(cfg)
    results = {}
    for i in stages_to_train([stage.train.output_dir for stage in configs], resume=resume):
        results = _train_stage(configs[i], configs[i + 1 :], resume=resume, is_second=i > 0)
    return results


def _train_stage(
    cfg: DictConfig, later: list[DictConfig], *, resume: bool, is_second: bool
) -> dict:
    train = cfg.train
    model = instantiate(cfg.model).to(train.device)
    for stage in later:
        require_matches(model, stage.train.trained, "train.decoupled.trained")
    if is_second and comm.is_main_process():
        LazyConfig.save(cfg, os.path.join(train.output_dir, "config.yaml"))
    if train.get("trained"):
        train_only(model, train.trained, "train.trained")
    logger.info("Model:\n%s", model)
    ema = build_ema(model, train.ema.decay) if _uses_ema(cfg) else None
    trainer = _build_trainer(cfg, model)
    tested = model if ema is None else ema.module
    evaluator = instantiate(cfg.dataloader.get("evaluator"))  # now, as it may find broken files
    results = {}

    def evaluate() -> dict[str, float]:
        # Processes train with batch norm statistics of their own. Checkpoints hold the main one's.
        broadcast(tested.buffers())
        with preemption.saving_at_once():
            results.update(_test(cfg, tested, evaluator))
        return without_nan(results)

    checkpointer = StrictCheckpointer(
        model,
        train.output_dir,
        trainer=trainer,
        reinitialized=train.get("reinitialize", ()),
        **class_arguments(dataset_names(cfg, "train"), train.get("transfer_from", "")),
    )
    preemption = PreemptionHook(checkpointer, next(model.parameters()).device)
    main = comm.is_main_process()
    built = [hooks.IterationTimer()]
    if ema is not None:
        checkpointer.add_checkpointable("ema", ema)
        built.append(hooks.CallbackHook(after_step=lambda _: ema.update_parameters(model)))
    built.append(hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)))
    built.append(preemption)
    if main:
        built.append(hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer))
    if evaluator is not None:
        built.append(hooks.EvalHook(train.eval_period, evaluate))
    if main and train.get("best_metric"):
        best = (train.eval_period, tested, train.output_dir, train.best_metric)
        built.append(BestCheckpointer(*best, class_names=checkpointer.class_names))
    if main and train.get("apa_log_period"):
        built.append(LambdaKappaWriter(model, train.apa_log_period))
    if main:
        writers = default_writers(train.output_dir, train.max_iter)
        built.append(hooks.PeriodicWriter(writers, period=train.log_period))
    if main and train.get("apa_log_period"):
        period = train.eval_period or train.checkpointer.period
        built.append(LambdaKappaPlotter(model, train.output_dir, period))
    trainer.register_hooks(built)

    resume = resume and checkpointer.has_checkpoint()
    checkpointer.strict = resume
    # what the first stage evaluated is what the second one starts from
    checkpointer.averaged = is_second and ema is not None and not resume
    checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
    trainer.train(trainer.iter + 1 if resume else 0, train.max_iter)
    return results


def _build_trainer(cfg: DictConfig, model: nn.Module) -> StepTrainer:
    train = cfg.train
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    cfg.optimizer.params.model = None  # the config may outlive it
    clip = train.get("clip_gradients")
    if clip and clip.clip_type:
        clip_gradients(optimizer, **clip)
    loader = instantiate(cfg.dataloader.train)
    train_names = dataset_names(cfg, "train")  # the loader has read them by now
    check_num_classes(cfg, train_names)
    look_up_frequencies(model)  # says so if they are unknown
    warn_of_other_classes(train_names, dataset_names(cfg, "test"))
    on_gpu = next(model.parameters()).is_cuda
    device_ids = [comm.get_local_rank()] if on_gpu else None
    amp_dtype = torch.float16 if on_gpu else torch.bfloat16
    return StepTrainer(
        *(create_ddp_model(model, device_ids=device_ids, **train.ddp), loader, optimizer),
        num_parts=train.get("accumulate", 1),
        precision=amp_dtype if train.amp.enabled else None,
    )


def _test(cfg: DictConfig, model: nn.Module, evaluator: DatasetEvaluator) -> dict:
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def _uses_ema(cfg: DictConfig) -> bool:
    return bool(cfg.train.get("ema") and cfg.train.ema.enabled)
