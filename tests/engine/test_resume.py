"""A training that is stopped and resumed ends with the same bytes as one that never stopped."""

import json
import os
from itertools import chain

import pytest
import torch

from apa_det.engine import setup_job
from apa_det.engine import train as train_job
from apa_det.engine.step import StepTrainer
from apa_det.engine.trainer import JobTrainer


class Crash(BaseException):
    pass


CALLS = {
    "step": (StepTrainer, "run_step"),
    "test": (JobTrainer, "_model_to_test"),
    "write": (os, "replace"),
}


@pytest.fixture
def run(arguments, monkeypatch):
    """Train, and return the tensors and numbers of its last files and the results it has written.

    Each crash is a call, e.g. ("step", 3) for the third step since the start or the last crash.
    """

    def run(output, *opts, crashes=(), make=arguments):
        key = "OUTPUT_DIR" if make is arguments else None
        place = (key, output) if key else (f"train.output_dir={output}",)
        for i, crash in enumerate([*crashes, None]):
            args = make(*place, *opts, resume=i > 0)
            with monkeypatch.context() as patch:
                if crash is None:
                    train_job(setup_job(args), resume=i > 0)
                    break
                patch.setattr(*crashing(*crash))
                with pytest.raises(Crash):
                    train_job(setup_job(args), resume=i > 0)
        return state_of(output)

    return run


def crashing(call, number):
    owner, name = CALLS[call]
    original, left = getattr(owner, name), number

    def crash(*args, **kwargs):
        nonlocal left
        left -= 1
        if not left:
            raise Crash
        return original(*args, **kwargs)

    return owner, name, crash


def state_of(output):
    state = {}
    for path in chain(output.rglob("model_final.pth"), output.rglob("model_best.pth")):
        content = torch.load(path, weights_only=False)
        state |= dict(leaves(content, str(path.relative_to(output))))
    for path in output.rglob("metrics.json"):
        lines = map(json.loads, path.read_text().splitlines())
        for line in lines:
            results = {k: v for k, v in line.items() if k.startswith(("bbox/", "segm/"))}
            if results:
                state[f"{path.relative_to(output)} {line['iteration']}"] = results
    return state


def leaves(value, name):
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}.{key}")
    elif isinstance(value, torch.Tensor):
        yield name, value.numpy().tobytes()
    else:
        yield name, value


def different(expected, state):
    names = expected.keys() | state.keys()
    return sorted(name for name in names if expected.get(name) != state.get(name))


BASE = (
    *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", ()),
    *("INPUT.MIN_SIZE_TRAIN", (48, 64, 80)),
)
TESTED = ("DATASETS.TEST", ("tiny_val",), "TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "bbox/AP")
RETINANET = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.MASK_ON", False),
    *("MODEL.BACKBONE.NAME", "build_apa_retinanet_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
)


@pytest.mark.parametrize(
    ("opts", "crashes"),
    [
        (("DATALOADER.NUM_WORKERS", 2), [("step", 4), ("step", 2)]),
        (
            ("MODEL.APA.GATE", "se", "SOLVER.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2),
            [("step", 4), ("write", 3)],
        ),
        (
            ("DATALOADER.SAMPLER_TRAIN", "ClassAwareTrainingSampler", "SOLVER.OPTIMIZER", "ADAMW"),
            [("step", 4), ("step", 2)],
        ),
        (TESTED, [("test", 1), ("test", 1), ("step", 3), ("test", 1)]),
        (
            (*TESTED, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2),
            [("step", 3), ("test", 1)],
        ),
        (RETINANET, [("step", 4), ("step", 2)]),
    ],
    ids=["workers", "gates", "adamw", "evaluation", "precise BN", "RetinaNet"],
)
def test_yaml(run, tmp_path, opts, crashes):
    expected = run(tmp_path / "a", *BASE, *opts)
    resumed = run(tmp_path / "b", *BASE, *opts, crashes=crashes)
    assert different(expected, resumed) == []


def test_lazy(run, tmp_path, lazy_arguments):
    opts = ("train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=2")
    expected = run(tmp_path / "a", *opts, make=lazy_arguments)
    crashes = [("test", 1), ("step", 2)]
    assert (
        different(expected, run(tmp_path / "b", *opts, make=lazy_arguments, crashes=crashes)) == []
    )


def test_both_stages_continue_the_drawn_seed(run, tmp_path):
    opts = (*BASE, "SOLVER.DECOUPLED.MAX_ITER", 4)
    crashes = [("step", 4), ("step", 4), ("step", 4)]  # the second one in the second stage
    resumed = run(tmp_path / "b", *opts, "SEED", -1, crashes=crashes)
    seed = resumed["classifier/model_final.pth.trainer.seed"]
    assert seed == resumed["model_final.pth.trainer.seed"]
    assert different(run(tmp_path / "a", *opts, "SEED", seed), resumed) == []


def test_another_seed_is_said(run, tmp_path, arguments):
    run(tmp_path, *BASE)
    args = arguments("OUTPUT_DIR", tmp_path, *BASE, "SEED", 2, resume=True)
    train_job(setup_job(args), resume=True)
    log = (tmp_path / "log.txt").read_text()
    assert "was trained with 1: the images come in another order" in log
