"""The trainings of ``kill_and_resume.py``, and what it can leave out of their resumption."""

from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

from apa_det.data import stream
from apa_det.engine import checkpointer, decoupled, hooks, step, trainer
from apa_det.engine.trainer import JobTrainer

ITERATIONS = 24
TINY = """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  MASK_ON: True
  PIXEL_STD: [57.375, 57.12, 58.395]
  BACKBONE: {NAME: build_apa_resnet_fpn_backbone, FREEZE_AT: 0}
  APA: {ACTIVATION: aglu, LOG_PERIOD: 2}
  RESNETS:
    DEPTH: 50
    WIDTH_PER_GROUP: 4
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 16
    OUT_FEATURES: [res2, res3, res4, res5]
    NORM: BN
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    PRE_NMS_TOPK_TRAIN: 50
    PRE_NMS_TOPK_TEST: 50
    POST_NMS_TOPK_TRAIN: 30
    POST_NMS_TOPK_TEST: 30
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
    NUM_CLASSES: 4
    BATCH_SIZE_PER_IMAGE: 16
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16}
INPUT: {MIN_SIZE_TRAIN: [48, 64, 80], MIN_SIZE_TEST: 64}
DATASETS: {TRAIN: [kill_train], TEST: [kill_val]}
DATALOADER: {NUM_WORKERS: 0, SAMPLER_TRAIN: RepeatFactorTrainingSampler, REPEAT_THRESHOLD: 0.9}
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 0.01
  STEPS: [8, 16]
  WARMUP_ITERS: 4
  CHECKPOINT_PERIOD: 2
  CHECKPOINTS_KEPT: 3
TEST: {DETECTIONS_PER_IMAGE: 20, EVAL_PERIOD: 4, BEST_METRIC: bbox/AP}
SEED: 3
VERSION: 2
"""


class Row(NamedTuple):
    """A kind of training."""

    opts: tuple = ()  # overrides of the config
    processes: int = 1
    kind: str = "yaml"  # lazy and compare are the others


_RETINANET = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.MASK_ON", False),
    *("MODEL.BACKBONE.NAME", "build_apa_retinanet_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
)
_GATES = ("MODEL.APA.GATE", "se", "MODEL.APA.GATE_DROPOUT", 0.3)
_SIGMOID = ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "sigmoid")
_DECOUPLED = ("SOLVER.DECOUPLED.MAX_ITER", 16)
_REPLAY = (
    *(*_SIGMOID, *_DECOUPLED, "SOLVER.DECOUPLED.REPLAY_SHARE", 1.0),
    *("MODEL.ROI_BOX_HEAD.REPLAY.SHARE", 0.5, "MODEL.ROI_BOX_HEAD.REPLAY.MEMORY", 3),
    *("MODEL.ROI_BOX_HEAD.REPLAY.START_ITER", 3),
)
ROWS = {
    "one stage": Row(),
    "2 workers": Row(("DATALOADER.NUM_WORKERS", 2)),
    "decoupled": Row(_DECOUPLED),
    "EMA": Row(("SOLVER.EMA.ENABLED", True)),
    "accumulate": Row(("SOLVER.ACCUMULATE", 2, "SOLVER.IMS_PER_BATCH", 4)),
    "2 processes": Row(processes=2),
    "FSDP": Row(("SOLVER.FSDP", True, "MODEL.APA.ACTIVATION", "relu"), processes=2),
    "lazy": Row(kind="lazy"),
    "gate dropout": Row(_GATES),
    "DropLoss": Row((*_SIGMOID, "MODEL.ROI_BOX_HEAD.CLASS_LOSS", "DropLoss")),
    "EQL v2, AdamW": Row(
        (
            *(*_SIGMOID, "MODEL.ROI_BOX_HEAD.CLASS_LOSS", "EqualizationLossV2"),
            *("SOLVER.OPTIMIZER", "ADAMW"),
        )
    ),
    "SEED -1": Row(("SEED", -1, *_DECOUPLED)),
    "precise BN": Row(("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2)),
    "RetinaNet, 2 processes": Row(_RETINANET, processes=2),
    "replay, 2 processes": Row(_REPLAY, processes=2),
    "early stopping": Row(("TEST.EARLY_STOPPING_PATIENCE", 3)),
    "compare": Row(kind="compare"),
}


# ------------------------------------------------------------------ what can be left out
def _without(key: str) -> Callable:
    """Return a patch of the trainer that restores its state without an entry."""

    def patch() -> mock._patch:
        load = JobTrainer.load_state_dict

        def partial(self, state: dict) -> None:
            own = self.state_dict()
            *groups, last = key.split(".")
            state = _copied(state)
            node, kept = state, own
            for group in groups:
                node, kept = node[group], kept[group]
            node[last] = kept[last]
            load(self, state)

        return mock.patch.object(JobTrainer, "load_state_dict", partial)

    return patch


def _copied(state: dict) -> dict:
    """Copy nested dicts, and share what they hold."""
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in state.items()}


def _patch(target: object, name: str, value: object) -> Callable:
    return lambda: mock.patch.object(target, name, value)


class _Nothing:
    """A seed that does nothing, also as a context."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def _fresh_ema() -> mock._patch:
    add = checkpointer.StrictCheckpointer.add_checkpointable

    def add_all_but_ema(self, key: str, value: object) -> None:
        if key != "ema":
            add(self, key, value)

    return mock.patch.object(checkpointer.StrictCheckpointer, "add_checkpointable", add_all_but_ema)


LEFT_OUT: dict[str, tuple[str, Callable]] = {  # the row that must fail, and the patch
    "position in the stream": ("one stage", _patch(JobTrainer, "_fast_forward", lambda _: None)),
    "seed of the images": ("2 workers", _patch(stream, "seeded", _Nothing)),
    "seed of the steps": ("gate dropout", _patch(trainer, "seed_all", _Nothing)),
    "optimizer": ("one stage", _without("_trainer.optimizer")),
    "schedule": ("one stage", _without("hooks")),
    "EMA": ("EMA", _fresh_ema),
    "drawn seed": ("SEED -1", _patch(JobTrainer, "_continue_seed", lambda _: None)),
    "seed of the second stage": ("decoupled", _patch(decoupled, "seed_all", _Nothing)),
    "evaluation": ("one stage", _patch(JobTrainer, "make_up", lambda _: None)),
    "best metric": (
        "one stage",
        _patch(hooks.BestCheckpointer, "before_train", lambda _: None),
    ),
    "precise BN": ("precise BN", _patch(JobTrainer, "make_up", lambda _: None)),
    "loss normalizer": (
        "RetinaNet, 2 processes",
        _patch(step, "set_loss_normalizers", lambda *_: None),
    ),
    "replay memory": ("replay, 2 processes", _without("_trainer.replay_memories")),
}
