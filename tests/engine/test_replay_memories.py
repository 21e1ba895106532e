"""Replay in trainings: its second stage, its checkpoints, and where it does not fit."""

import pytest
import torch

from apa_det.engine import Trainer, setup_job, train
from apa_det.engine.step import StepTrainer
from apa_det.errors import UserError
from apa_det.modeling import FeatureReplay

from ..conftest import read_metrics
from .test_resume import RETINANET

REPLAY = (
    *("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.REPLAY.SHARE", 0.5),
    *("MODEL.ROI_BOX_HEAD.REPLAY.MEMORY", 2, "DATASETS.TEST", ()),
)
SECOND = (
    *("MODEL.ROI_HEADS.NAME", "APAROIHeads", "SOLVER.DECOUPLED.MAX_ITER", 3),
    *("SOLVER.DECOUPLED.REPLAY_SHARE", 0.5, "DATASETS.TEST", ()),
)
MODULE = "roi_heads.box_predictor.replay"


def memories(path):
    return torch.load(path, weights_only=True)["trainer"]["_trainer"]["replay_memories"]


def test_in_the_second_stage_only(arguments, output):
    train(setup_job(arguments(*SECOND)))
    assert memories(output / "model_final.pth") == []
    assert not any("replay/num_replayed" in line for line in read_metrics(output))
    (memory,) = memories(output / "classifier/model_final.pth")
    assert 0 < len(memory[MODULE]["features"]) <= memory[MODULE]["counts"].sum()
    (line,) = read_metrics(output / "classifier")
    assert line["replay/num_replayed"] > 0 and 0 < line["replay/memory_fill"] <= 1
    weights = torch.load(output / "classifier/model_final.pth", weights_only=True)["model"]
    assert not any("replay" in name for name in weights)


def test_memory_after_a_resume(arguments, tmp_path):
    """A training in two halves ends like one in one go: a memory for each stage of a cascade."""
    opts = (
        *(*REPLAY, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.ACCUMULATE", 2),
        *("SOLVER.AMP.ENABLED", True, "SOLVER.EMA.ENABLED", True, "MODEL.MASK_ON", False),
        *("MODEL.ROI_HEADS.NAME", "APACascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    )
    states = []
    for name, stop in (("a", False), ("b", True)):
        options = (*opts, "OUTPUT_DIR", tmp_path / name)
        if stop:
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(StepTrainer, "run_step", _stopping(StepTrainer.run_step, 3))
                train(setup_job(arguments(*options)))
        train(setup_job(arguments(*options, resume=stop)), resume=stop)
        states.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True))
    for key in ("model", "ema"):
        for name, weight in states[0][key].items():
            assert torch.equal(weight, states[1][key][name]), name
    first, second = (s["trainer"]["_trainer"]["replay_memories"][0] for s in states)
    assert [*first] == [*second] == [f"roi_heads.box_predictor.{i}.replay" for i in range(3)]
    for name, memory in first.items():
        assert memory["features"].dtype == torch.bfloat16
        for key, value in memory.items():
            assert torch.equal(value, second[name][key]), (name, key)


def _stopping(run_step, number):
    left = number

    def run(self):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        run_step(self)

    return run


def test_bad_steps_leave_no_features(arguments, monkeypatch):
    """A skipped step does not change the memory."""
    trainer = Trainer(setup_job(arguments(*REPLAY, "SOLVER.SKIP_NONFINITE", 5)).config)
    monkeypatch.setattr(StepTrainer, "_is_bad", lambda *_: True)
    trainer.train()
    module = trainer.model.get_submodule(MODULE)
    assert isinstance(module, FeatureReplay) and module.memory.features is None
    assert trainer._trainer.state_dict()["replay_memories"] == []


def test_damaged_memory(arguments, output):
    train(setup_job(arguments(*REPLAY, "SOLVER.MAX_ITER", 2)))
    path = output / "model_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    memory = checkpoint["trainer"]["_trainer"]["replay_memories"][0][MODULE]
    memory["features"] = memory["features"][:-1]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="does not fit the training: trainer: the replay mem"):
        train(setup_job(arguments(*REPLAY, "SOLVER.MAX_ITER", 3, resume=True)), resume=True)


def test_where_it_does_not_fit(arguments, lazy_arguments):
    for opts, message in (
        ((*REPLAY, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"), "REPLAY.SHARE works in APAROIH"),
        ((*REPLAY, *RETINANET), "MODEL.ROI_BOX_HEAD.REPLAY.SHARE works in APAROIHeads and"),
        ((*SECOND, *RETINANET), "SOLVER.DECOUPLED.REPLAY_SHARE works in APAROIHeads and"),
        ((*REPLAY, "MODEL.ROI_BOX_HEAD.REPLAY.GROUPS", ["c"]), "no class of the training set is"),
        ((*SECOND, "MODEL.ROI_BOX_HEAD.REPLAY.GROUPS", []), "no class of the training set is"),
    ):
        with pytest.raises(UserError, match=message):
            train(setup_job(arguments(*opts)))
    lazy = ("train.decoupled.max_iter=2", "train.decoupled.replay_share=0.5")
    with pytest.raises(UserError, match="replay_share is 0.5, but the model has no replay"):
        setup_job(lazy_arguments(*lazy)).stages()


def test_lazy_config(lazy_arguments, output):
    replay = "model.roi_heads.box_predictor.replay"
    opts = [
        f"{replay}._target_=apa_det.modeling.FeatureReplay",
        f"{replay}.num_classes=${{..num_classes}}",
        f"{replay}.datasets=${{dataloader.train.dataset.names}}",
        f"{replay}.share=0.0",
        f"{replay}.start_iter=1",
        *("train.decoupled.max_iter=3", "train.decoupled.replay_share=0.5"),
        *("dataloader.evaluator=null", "train.reference_world_size=0"),
    ]
    job = setup_job(lazy_arguments(*opts))
    scaled = setup_job(lazy_arguments(*opts, "train.reference_world_size=1")).scaled(2)
    assert scaled.config.model.roi_heads.box_predictor.replay.start_iter == 0
    train(job)
    assert memories(output / "model_final.pth") == []
    assert memories(output / "classifier/model_final.pth")
    module = job.stages()[1].config.model.roi_heads.box_predictor.replay
    assert (module.share, module.start_iter) == (0.5, 0)
