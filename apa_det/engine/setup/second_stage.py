"""Configs of the second stage of decoupled training; see :mod:`apa_det.engine.decoupled`."""

import copy
import os
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, ListConfig

from ...data import build_train_loader
from ...errors import UserError
from ...modeling import FeatureReplay
from .config_files import call_target


def yaml_second_stage(cfg: CfgNode) -> dict[str, object]:
    """Return the values of a yaml config that change in the second stage, by their keys.

    Raises:
        UserError: the settings of the second stage are incomplete.
    """
    second = cfg.SOLVER.DECOUPLED
    if not second.TRAINED:
        raise UserError("SOLVER.DECOUPLED.TRAINED is empty: set it to the classifier's parameters.")
    values = {
        "SOLVER.DECOUPLED.MAX_ITER": 0,
        "OUTPUT_DIR": os.path.join(cfg.OUTPUT_DIR, "classifier"),
        "MODEL.WEIGHTS": os.path.join(cfg.OUTPUT_DIR, "model_final.pth"),
        "MODEL.TRANSFER_FROM": "",
        "MODEL.REINITIALIZE": second.TRAINED if second.REINITIALIZE else [],
        "DATALOADER.SAMPLER_TRAIN": second.SAMPLER_TRAIN,
        "SOLVER.TRAINED": second.TRAINED,
        "SOLVER.MAX_ITER": second.MAX_ITER,
        "SOLVER.STEPS": second.STEPS,
        "SOLVER.WARMUP_ITERS": 0,
        "MODEL.ROI_BOX_HEAD.REPLAY.START_ITER": 0,
    }
    if second.BASE_LR is not None:
        values["SOLVER.BASE_LR"] = second.BASE_LR
    if second.REPLAY_SHARE is not None:
        values["MODEL.ROI_BOX_HEAD.REPLAY.SHARE"] = second.REPLAY_SHARE
    return values


def replay_nodes(node: object) -> Iterator[DictConfig]:
    """Yield the nodes of a LazyConfig that build a :class:`FeatureReplay`."""
    if isinstance(node, DictConfig) and call_target(node) is FeatureReplay:
        yield node
    elif isinstance(node, DictConfig):
        for key in node:
            yield from replay_nodes(node.get(key))
    elif isinstance(node, ListConfig):
        for entry in node:
            yield from replay_nodes(entry)


def lazy_second_stage(cfg: DictConfig) -> DictConfig | None:
    """Return the LazyConfig of the second stage; None if there is none.

    Raises:
        UserError: the settings of the second stage are incomplete or invalid.
    """
    second = cfg.train.get("decoupled")
    if not second or not second.max_iter:
        return None
    if not second.trained:
        raise UserError("train.decoupled.trained is empty: set it to the classifier's parameters.")
    if call_target(cfg.dataloader.train) is not build_train_loader:
        raise UserError(
            "train.decoupled sets dataloader.train.sampler: dataloader.train must be "
            "L(apa_det.data.build_train_loader)(...)."
        )
    stage = copy.deepcopy(cfg)
    stage.train.update(
        decoupled=None,
        output_dir=os.path.join(cfg.train.output_dir, "classifier"),
        init_checkpoint=os.path.join(cfg.train.output_dir, "model_final.pth"),
        transfer_from="",
        trained=second.trained,
        reinitialize=second.trained if second.reinitialize else [],
        max_iter=second.max_iter,
    )
    stage.dataloader.train.sampler = second.sampler
    if second.lr is not None:
        stage.optimizer.lr = second.lr
    share, replays = second.get("replay_share"), [*replay_nodes(stage.model)]
    if share and not replays:
        raise UserError(
            f"train.decoupled.replay_share is {share}, but the model has no replay: set "
            "model.roi_heads.box_predictor.replay to L(apa_det.modeling.FeatureReplay)(...)."
        )
    for replay in replays:
        replay.update({"start_iter": 0} if share is None else {"start_iter": 0, "share": share})
    stage.lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[0.1**k for k in range(len(second.steps) + 1)],
            milestones=list(second.steps),
            num_updates=second.max_iter,
        ),
        warmup_length=0.0,
        warmup_factor=1.0,
    )
    return stage
