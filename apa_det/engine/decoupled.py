"""Decoupled training: the representation first, and then the classifier alone.

"Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020),
section 4.1, classifier re-training: the classifier is re-initialised and trained under
class-balanced sampling, on a representation that was trained under natural sampling and is fixed.
"""

import copy
import gc
import logging
import os
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

from ..data import build_train_loader
from ..data.sampling import TRAIN_SAMPLER_REGISTRY
from .freezing import require_matches
from .setup.checks import require_train_sampler
from .trainer import Trainer

__all__ = ["last_stage", "lazy_stages", "resumed_stage", "stages", "stages_to_train", "train"]

logger = logging.getLogger(__name__)

FOLDER = "classifier"


def stages(cfg: CfgNode) -> list[CfgNode]:
    """The configs of the stages: itself, and with ``SOLVER.DECOUPLED`` that of the classifier's.

    The second starts from ``model_final.pth`` of the first.

    Raises:
        ValueError: ``SOLVER.DECOUPLED`` names no sampler, or no parameter to train.
    """
    second = cfg.SOLVER.DECOUPLED
    if not second.MAX_ITER:
        return [cfg]
    if not second.TRAINED:
        raise ValueError("SOLVER.DECOUPLED.TRAINED is empty: name the classifier's parameters.")
    stage = cfg.clone()
    stage.defrost()
    stage.SOLVER.DECOUPLED.MAX_ITER = 0
    stage.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, FOLDER)
    stage.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    stage.MODEL.TRANSFER_FROM = ""
    stage.MODEL.REINITIALIZE = second.TRAINED if second.REINITIALIZE else []
    stage.DATALOADER.SAMPLER_TRAIN = second.SAMPLER_TRAIN
    stage.SOLVER.TRAINED = second.TRAINED
    stage.SOLVER.MAX_ITER = second.MAX_ITER
    stage.SOLVER.STEPS = second.STEPS
    stage.SOLVER.WARMUP_ITERS = 0
    if second.BASE_LR is not None:
        stage.SOLVER.BASE_LR = second.BASE_LR
    require_train_sampler(stage)
    stage.freeze()
    return [cfg, stage]


def lazy_stages(cfg: DictConfig) -> list[DictConfig]:
    """:func:`stages` of a LazyConfig, by ``train.decoupled``.

    Raises:
        ValueError: it names no sampler, or no parameter to train; or ``dataloader.train`` is not
            :func:`apa_det.data.build_train_loader`.
    """
    second = cfg.train.get("decoupled")
    if not second or not second.max_iter:
        return [cfg]
    if not second.trained:
        raise ValueError("train.decoupled.trained is empty: name the classifier's parameters.")
    if cfg.dataloader.train._target_ not in (build_train_loader, _name_of(build_train_loader)):
        raise ValueError(
            "train.decoupled sets dataloader.train.sampler: dataloader.train has to be "
            "L(apa_det.data.build_train_loader)(...)."
        )
    if second.sampler not in TRAIN_SAMPLER_REGISTRY:
        names = ", ".join(name for name, _ in TRAIN_SAMPLER_REGISTRY)
        raise ValueError(f"train.decoupled.sampler is {second.sampler}: choose one of {names}.")
    stage = copy.deepcopy(cfg)
    stage.train.update(
        decoupled=None,
        output_dir=os.path.join(cfg.train.output_dir, FOLDER),
        init_checkpoint=os.path.join(cfg.train.output_dir, "model_final.pth"),
        transfer_from="",
        trained=second.trained,
        reinitialize=second.trained if second.reinitialize else [],
        max_iter=second.max_iter,
    )
    stage.dataloader.train.sampler = second.sampler
    if second.lr is not None:
        stage.optimizer.lr = second.lr
    stage.lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**k for k in range(len(second.steps) + 1)],
            milestones=list(second.steps),
            num_updates=second.max_iter,
        ),
        warmup_length=0.0,
        warmup_factor=1.0,
    )
    return [cfg, stage]


def _name_of(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def resumed_stage(folders: list[str]) -> int:
    """The place of the stage to go on with: of the last folder with a checkpoint, else 0."""
    return max((i for i, folder in enumerate(folders) if _has_checkpoint(folder)), default=0)


def last_stage(cfg: CfgNode) -> CfgNode:
    """The config of the last stage that has a checkpoint, for ``--resume``; else the first."""
    configs = stages(cfg)
    return configs[resumed_stage([stage.OUTPUT_DIR for stage in configs])]


def stages_to_train(folders: list[str], *, resume: bool) -> Iterator[int]:
    """The places of the stages that are left, each when the one before has ended.

    Args:
        folders: those of all stages.
        resume: start with the last one that has a checkpoint. If not, the checkpoints of later
            stages are from an earlier training, and ``--resume`` must not take them for this one's.
    """
    first = resumed_stage(folders) if resume else 0
    if not resume and comm.is_main_process():
        for folder in filter(_has_checkpoint, folders[1:]):
            PathManager.rm(_last_checkpoint(folder))
    for i, folder in enumerate(folders):
        if len(folders) > 1:
            what = ("the representation", "the classifier alone")[i]
            state = "has ended" if i < first else "begins"
            logger.info(
                "Decoupled training, stage %d of 2 %s: %s, in %s", i + 1, state, what, folder
            )
        if i >= first:
            comm.synchronize()  # with what the main process wrote and removed
            PathManager.mkdirs(folder)
            yield i
            gc.collect()  # the model of this stage, before the next one takes its memory


def _last_checkpoint(folder: str) -> str:
    return os.path.join(folder, "last_checkpoint")


def _has_checkpoint(folder: str) -> bool:
    return PathManager.isfile(_last_checkpoint(folder))


def train(cfg: CfgNode, *, resume: bool = False) -> dict | None:
    """Train what a config describes, in one stage or, with ``SOLVER.DECOUPLED``, in two.

    Args:
        cfg: the config, as :func:`apa_det.engine.setup_job` gives it.
        resume: go on from the last checkpoint of the last stage that has one.

    Returns:
        What ``Trainer.train`` of the last stage does.

    Raises:
        ValueError: ``SOLVER.DECOUPLED`` does not fit the model; before the first stage.
    """
    configs = stages(cfg)
    results = None
    for i in stages_to_train([stage.OUTPUT_DIR for stage in configs], resume=resume):
        results = _train_stage(configs[i], configs[i + 1 :], resume=resume, is_second=i > 0)
    return results


def _train_stage(
    cfg: CfgNode, later: list[CfgNode], *, resume: bool, is_second: bool
) -> dict | None:
    trainer = Trainer(cfg)
    checkpointer = trainer.checkpointer
    for stage in later:
        require_matches(checkpointer.model, stage.SOLVER.TRAINED, "SOLVER.DECOUPLED.TRAINED")
    if is_second:
        if comm.is_main_process():
            with PathManager.open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
                f.write(cfg.dump())
        # what the first stage evaluated is what the second one starts from
        begun = resume and checkpointer.has_checkpoint()
        checkpointer.averaged = cfg.SOLVER.EMA.ENABLED and not begun
    trainer.resume_or_load(resume=resume)
    return trainer.train()
