"""Resume from checkpoints whose training state is damaged, or is of another training."""

import copy

import pytest
import torch
from torch import nn

from apa_det.engine import Trainer, setup_job
from apa_det.engine.training_state import load_state
from apa_det.errors import UserError

OPTIONS = (
    *("SOLVER.MAX_ITER", 1, "SOLVER.EMA.ENABLED", True, "TEST.EVAL_PERIOD", 0),
    *("SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", ()),
)


@pytest.fixture(scope="module")
def saved(tiny_config, tmp_path_factory):
    """A trainer, and the checkpoint of its first iteration."""
    from ..conftest import training_flags

    output = tmp_path_factory.mktemp("output")
    flags = training_flags(tiny_config, *OPTIONS, "OUTPUT_DIR", output)
    trainer = Trainer(setup_job(flags).config)
    trainer.train()
    trainer.optimizer.state.clear()  # as before a training
    return trainer, output, torch.load(output / "model_final.pth", weights_only=True)


def first_state(checkpoint):
    return next(iter(checkpoint["trainer"]["_trainer"]["optimizer"]["state"].values()))


def set_at(*keys, to):
    def change(checkpoint):
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = to

    return change


def momentum(tensor):
    return lambda checkpoint: first_state(checkpoint).update(momentum_buffer=tensor)


def ema_weight(change):
    def apply(checkpoint):
        name = next(name for name in checkpoint["ema"] if name.endswith("weight"))
        checkpoint["ema"][name] = change(checkpoint["ema"][name])

    return apply


OPTIMIZER = ("trainer", "_trainer", "optimizer")
CHANGES = {
    "no iteration": (lambda c: c["trainer"].pop("iteration"), "trainer: missing entry 'iteration'"),
    "no optimizer": (lambda c: c["trainer"].pop("_trainer"), "trainer: missing entry 'optimizer'"),
    "iteration": (set_at("trainer", "iteration", to="3"), "trainer.iteration must be an integer"),
    "negative": (
        set_at("trainer", "iteration", to=-3),
        "iteration must be an integer >= 0, got -3",
    ),
    "a list": (set_at("trainer", to=[1]), "trainer must be a dict, got a list of 1"),
    "nothing": (set_at("trainer", to=None), "trainer must be a dict, got None"),
    "groups": (set_at(*OPTIMIZER, "param_groups", to=[]), "param_groups must be a list of"),
    "group": (
        lambda c: c["trainer"]["_trainer"]["optimizer"]["param_groups"][0].update(lr="x"),
        r"optimizer.param_groups\[0\].lr must be a number, got 'x'",
    ),
    "params": (
        lambda c: c["trainer"]["_trainer"]["optimizer"]["param_groups"][0].update(params=[]),
        r"param_groups\[0\].params must be a list of",
    ),
    "NaN rate": (
        lambda c: c["trainer"]["_trainer"]["optimizer"]["param_groups"][0].update(lr=float("nan")),
        "lr must be a number, got nan",
    ),
    "states": (set_at(*OPTIMIZER, "state", to=7), "optimizer.state must be a dict, got 7"),
    "unknown": (set_at(*OPTIMIZER, "state", 10**6, to={}), "unknown parameter 1000000"),
    "no dict": (set_at(*OPTIMIZER, "state", 0, to=5), "trainer: .*int"),
    "momentum": (momentum(torch.ones(9, 9)), "momentum_buffer of parameter .* has shape"),
    "NaN momentum": (momentum(torch.tensor(float("nan"))), "momentum_buffer .* has NaN"),
    "text momentum": (momentum("\x1b[31m"), r"momentum_buffer .* must be a tensor or a number"),
    "scheduler": (
        set_at("trainer", "hooks", "LRScheduler", "last_epoch", to="1"),
        "LRScheduler.last_epoch must be an integer",
    ),
    "scheduler list": (
        set_at("trainer", "hooks", "LRScheduler", to=[]),
        "LRScheduler must be a dict",
    ),
    "hooks": (set_at("trainer", "hooks", to=3), "trainer.hooks must be a dict, got 3"),
    "ema": (set_at("ema", to="x"), "ema must be a dict, got 'x'"),
    "ema entry": (ema_weight(lambda t: t[:1, :1]), "ema.module.* has shape"),
    "ema NaN": (ema_weight(lambda t: t * float("nan")), "ema.module.* has NaN"),
    "ema kind": (ema_weight(lambda t: t.long()), "ema.module.* is of torch.int64"),
    "ema number": (ema_weight(lambda t: 3), "ema.module.* must be a tensor, got 3"),
    "ema count": (set_at("ema", "n_averaged", to=torch.ones(2)), "n_averaged has shape"),
    "no ema": (lambda c: c["ema"].pop("n_averaged"), "ema: .*n_averaged"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_state_that_does_not_fit(name, saved):
    trainer, _, checkpoint = saved
    change, reason = CHANGES[name]
    checkpoint = copy.deepcopy(checkpoint)
    change(checkpoint)
    with pytest.raises(UserError, match=f"x.pth does not fit the training: .*{reason}") as error:
        for part, target in trainer.checkpointer.checkpointables.items():
            load_state(target, checkpoint[part], "x.pth", part)
    assert str(error.value).isprintable()


def test_resuming(saved):
    trainer, output, checkpoint = saved
    checkpoint = copy.deepcopy(checkpoint)
    checkpoint["trainer"]["hooks"]["LRScheduler"]["last_epoch"] = None
    torch.save(checkpoint, output / "changed.pth")
    (output / "last_checkpoint").write_text("changed.pth")
    with pytest.raises(UserError, match="changed.pth does not fit the training: trainer.hooks.LR"):
        trainer.resume_or_load(resume=True)


def test_whole_state(saved):
    trainer, output, checkpoint = saved
    (output / "last_checkpoint").write_text("model_final.pth")
    for part in ("ema", "trainer"):  # files without a part are resumed from
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 1
        state = first_state({"trainer": trainer.state_dict()})["momentum_buffer"]
        assert torch.equal(state, first_state(checkpoint)["momentum_buffer"])
        torch.save({k: v for k, v in checkpoint.items() if k != part}, output / "model_final.pth")


def test_other_optimizers():
    """Adam's step is a tensor of one number; the file may lack entries of newer versions."""
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group.pop("foreach")
        group["weight_decay"] = 0.1
    other = torch.optim.AdamW(model.parameters())
    load_state(other, state, "x.pth", "optimizer")
    assert other.state_dict()["state"][0]["step"] == 1
