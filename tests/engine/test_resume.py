"""A training that is stopped and resumed ends with the same bytes as one that never stopped."""

import pytest
import torch
from detectron2.engine import HookBase

from apa_det.engine import Trainer, setup_job
from apa_det.engine import train as train_job


class Crash(BaseException):
    pass


class CrashHook(HookBase):
    def __init__(self, iteration):
        self._iteration = iteration

    def before_step(self):
        if self.trainer.iter == self._iteration:
            raise Crash


@pytest.fixture
def run(arguments, monkeypatch):
    """Train with crashes at the given iterations, and return the final checkpoint's tensors."""

    def run(output, *opts, crashes=(), kind=arguments):
        hooks = Trainer.build_hooks
        for i, crash in enumerate([*crashes, None]):
            monkeypatch.setattr(
                Trainer, "build_hooks", lambda self, crash=crash: [CrashHook(crash), *hooks(self)]
            )
            args = kind("OUTPUT_DIR", output, *opts, resume=i > 0)
            if crash is None:
                train_job(setup_job(args), resume=i > 0)
            else:
                with pytest.raises(Crash):
                    train_job(setup_job(args), resume=i > 0)
        monkeypatch.setattr(Trainer, "build_hooks", hooks)
        return tensors(torch.load(output / "model_final.pth", weights_only=False))

    return run


def tensors(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name: value}
    if not isinstance(value, dict | list | tuple):
        return {}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: t for key, v in items for k, t in tensors(v, f"{name}.{key}").items()}


BASE = (
    *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", ()),
    *("INPUT.MIN_SIZE_TRAIN", (48, 64, 80)),
)


@pytest.mark.parametrize(
    "opts",
    [
        ("DATALOADER.NUM_WORKERS", 2),
        ("MODEL.APA.GATE", "se", "SOLVER.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2),
        ("DATALOADER.SAMPLER_TRAIN", "ClassAwareTrainingSampler", "SOLVER.OPTIMIZER", "ADAMW"),
    ],
    ids=["workers", "gates", "adamw"],
)
def test_resumed_training_is_the_undisturbed_one(run, tmp_path, opts):
    expected = run(tmp_path / "a", *BASE, *opts)
    resumed = run(tmp_path / "b", *BASE, *opts, crashes=[3, 4])
    assert expected.keys() == resumed.keys()
    assert [k for k, v in expected.items() if not torch.equal(v, resumed[k])] == []
