"""Decoupled training, and freezing of parameters."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.evaluation import inference_context
from detectron2.utils.events import EventStorage
from torch import nn

from apa_det.engine import (
    Trainer,
    evaluate,
    setup_job,
    train,
    train_only,
)
from apa_det.engine.ema import averaged_state
from apa_det.errors import UserError

ROOT = Path(__file__).parents[2]
TRAIN_NET = ROOT / "tools/train_net.py"
SCORES = r"roi_heads\.box_predictor(\.\d)?\.(cls_score|score)\."
DECOUPLED = (
    *("SOLVER.DECOUPLED.MAX_ITER", 2, "SOLVER.DECOUPLED.BASE_LR", 0.05),
    *("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "apa"),
    *("MODEL.APA.GATE", "se"),
)


def saved(path, key="model"):
    return torch.load(path, weights_only=True)[key]


def assert_only_classifier_differs(first, second):
    for name, value in first.items():
        changed = not torch.equal(second[name], value)
        assert changed == bool(re.match(SCORES, name)), name


def test_both_stages_resumed_and_evaluated(arguments, output, train_net):
    """The second stage trains only the classifier; --resume and --eval-only use its weights."""
    options = (*DECOUPLED, "SOLVER.EMA.ENABLED", True, "TEST.BEST_METRIC", "bbox/AP50")
    train_net(arguments(*options))
    final, classifier = output / "model_final.pth", output / "classifier/model_final.pth"
    # stage 2 starts from the averaged weights
    first = averaged_state(saved(final, "ema"))
    assert_only_classifier_differs(first, saved(classifier))
    log = (output / "log.txt").read_text()
    for line in (
        r"stage 1 of 2 starts: the whole model, in \S+output\n",
        r"stage 2 of 2 starts: the classifier, in \S+output/classifier\n",
        "Expected contents of an epoch of TrainingSampler",
        "Expected contents of an epoch of ClassAwareTrainingSampler",
        r"Training \d+ of \d+ weights; all others are frozen:\n  roi_heads.box_predictor.cls_sc",
    ):
        assert re.search(line, log), line
    assert (output / "classifier/model_best.pth").exists()

    time = os.path.getmtime(final)
    longer = ("SOLVER.DECOUPLED.MAX_ITER", 3)
    train_net(arguments(*options, *longer, resume=True))
    assert os.path.getmtime(final) == time
    assert saved(classifier, "iteration") == 2
    assert_only_classifier_differs(first, saved(classifier))
    results = train_net(arguments(*options, resume=True, eval_only=True))
    assert "bbox" in results
    log = (output / "log.txt").read_text()
    assert "stage 1 of 2 is complete" in log
    assert re.search(r"Loading from \S+classifier/model_final.pth", log)


def test_another_training_in_the_same_folder(arguments, output, monkeypatch):
    """It needs --overwrite, and a later --resume ignores the second stage of the earlier one."""
    last = output / "classifier/last_checkpoint"
    last.parent.mkdir(parents=True)
    last.write_text("model_final.pth")
    job = setup_job(arguments(*DECOUPLED, "SOLVER.DECOUPLED.TRAINED", ["*typo*"]))
    with pytest.raises(UserError, match="has checkpoints of another training, e.g. .*/classifier/"):
        train(job)
    with pytest.raises(UserError, match="DECOUPLED.TRAINED has the pattern .*typo"):
        train(job, overwrite=True)
    assert last.exists()

    class Started(Exception):
        pass

    def start(self):
        raise Started

    monkeypatch.setattr(Trainer, "train", start)
    with pytest.raises(Started):
        train(setup_job(arguments(*DECOUPLED, overwrite=True)), overwrite=True)
    assert not last.exists()


def test_classifier_without_reinitialization(arguments, output, train_net):
    """At a learning rate of 0, nothing changes."""
    options = (*DECOUPLED, "SOLVER.DECOUPLED.BASE_LR", 0.0, "SOLVER.DECOUPLED.REINITIALIZE", False)
    train_net(arguments(*options, "DATASETS.TEST", ()))
    first, second = (saved(output / f"{f}model_final.pth") for f in ("", "classifier/"))
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_two_processes(arguments, output):
    args = arguments()
    command = [sys.executable, TRAIN_NET, "--config-file", args.config_file, "--num-gpus", "2"]
    command += ["--dist-url", "auto", *map(str, DECOUPLED), "DATASETS.TEST", "()"]
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (saved(output / f"{f}model_final.pth") for f in ("", "classifier/"))
    assert_only_classifier_differs(first, second)


def test_config_of_the_second_stage(arguments):
    job = setup_job(arguments(*DECOUPLED, "SOLVER.DECOUPLED.STEPS", (1,)))
    first, stage = job.stages()
    assert first is job
    second = stage.config
    assert second.OUTPUT_DIR == f"{job.output_dir}/classifier"
    assert second.MODEL.WEIGHTS == f"{job.output_dir}/model_final.pth"
    assert second.DATALOADER.SAMPLER_TRAIN == "ClassAwareTrainingSampler"
    solver = second.SOLVER
    assert (solver.MAX_ITER, solver.BASE_LR, tuple(solver.STEPS)) == (2, 0.05, (1,))
    assert (solver.TRAINED, second.MODEL.REINITIALIZE) == (["*score.*"], ["*score.*"])
    assert stage.stages() == [stage]
    with pytest.raises(UserError, match="SAMPLER_TRAIN must be one of .*got 'Balanced'"):
        setup_job(arguments(*DECOUPLED, "SOLVER.DECOUPLED.SAMPLER_TRAIN", "Balanced")).stages()


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(*copy.deepcopy(layers))
        self.score = nn.Linear(4, 2)

    def forward(self, x):
        return self.score(self.head(self.body(x)))


def test_frozen_parts_stay_frozen():
    """Statistics and dropout too, after evaluation and in a copy."""
    model = Parts()
    train_only(model, ["head.*", "score.*"])
    for module in (model, copy.deepcopy(model)):
        with inference_context(module):
            pass
        module.train()
        assert not any(m.training for m in module.body[1:])
        assert all(m.training for m in (module, module.head[1], module.head[2], module.score))
        before = copy.deepcopy(module.body.state_dict())
        assert torch.equal(*(module.body(torch.ones(3, 4)) for _ in range(2)))
        module(torch.randn(8, 4)).sum().backward()
        for name, value in module.body.state_dict().items():
            assert torch.equal(before[name], value)
        trained = {name for name, p in module.named_parameters() if p.grad is not None}
        assert trained == {n for n, _ in module.named_parameters() if not n.startswith("body")}


def test_patterns_without_trainable_parameters():
    with pytest.raises(UserError, match="SOLVER.TRAINED has the pattern 'heads"):
        train_only(Parts(), ["heads.*"], "SOLVER.TRAINED")
    model = Parts()
    model.score.requires_grad_(False)
    with pytest.raises(UserError, match="matches only frozen parameters"):
        train_only(model, ["score.*"])


def test_gradients_of_trained_layers(arguments):
    """They equal those without freezing; the others have no gradient."""
    options = ("MODEL.ROI_HEADS.NAME", "APAROIHeads")
    models = [
        Trainer(setup_job(arguments(*options, *trained)).config).model
        for trained in ((), ("SOLVER.TRAINED", ["*score.*", "*.box_head.*"]))
    ]
    models[1].load_state_dict(models[0].state_dict())
    data = next(iter(Trainer.build_train_loader(setup_job(arguments()).config)))
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        torch.manual_seed(0)
        with EventStorage():
            sum(model(data).values()).backward()
    whole = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        if "score." in name or ".box_head." in name:
            torch.testing.assert_close(parameter.grad, whole[name].grad, msg=name)
        else:
            assert parameter.grad is None


def test_lazy_config(lazy_arguments, output):
    options = ("train.decoupled.max_iter=2", "train.ema.enabled=True")
    without = (*options, "dataloader.evaluator=null")
    train(setup_job(lazy_arguments(*without)))
    first = averaged_state(saved(output / "model_final.pth", "ema"))
    assert_only_classifier_differs(first, saved(output / "classifier/model_final.pth"))
    longer = lazy_arguments(*without, "train.decoupled.max_iter=3", resume=True)
    train(setup_job(longer), resume=True)
    assert saved(output / "classifier/model_final.pth", "iteration") == 2
    evaluate(setup_job(lazy_arguments(*options, resume=True)), resume=True)
    assert re.search(r"Loading from \S+classifier/model_final", (output / "log.txt").read_text())
    for option, message in (
        ("train.decoupled.sampler=Balanced", "must be one of"),
        ("train.decoupled.trained=[]", "is empty"),
    ):
        with pytest.raises(UserError, match=message):
            setup_job(lazy_arguments(*options, option, resume=True)).stages()
