"""Steps with NaN or infinite losses or gradients, and errors in the middle of a training."""

import copy
import errno
import json

import pytest
import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from apa_det.engine import step as step_module
from apa_det.engine.loop import TrainingLoop
from apa_det.engine.preemption import PreemptionHook
from apa_det.engine.saving import AtomicCheckpointer, PeriodicCheckpointer
from apa_det.engine.step import StepTrainer
from apa_det.errors import UserError

BAD = torch.tensor(torch.nan), torch.tensor(torch.inf), torch.tensor(-torch.inf)


class Model(nn.Module):
    """A model with buffers that change in training: in place, replaced, and of integers.

    A batch is (features, factor of the loss, factor of the gradient of one weight).
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("constant", torch.ones(2), persistent=False)

    def forward(self, batch):
        features, loss_factor, gradient_factor = batch
        self.seen = self.seen + 1
        weight = self.fc.weight * 1
        if weight.requires_grad:
            weight.register_hook(lambda gradient: gradient * gradient_factor)
        out = nn.functional.linear(self.norm(features), weight, self.fc.bias)
        return {"loss_a": out.square().mean() * loss_factor, "loss_b": out.mean()}


class Trainer(TrainingLoop):
    """The loop and the step of a JobTrainer, around a small model."""

    def __init__(self, batches, folder, added=(), period=100, gamma=0.5, **kwargs):
        super().__init__()
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self._trainer = StepTrainer(model, batches, optimizer, skip_key="SKIP", **kwargs)
        self.checkpointer = AtomicCheckpointer(model, str(folder), trainer=self)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma)
        self.lines = []
        self.register_hooks(
            [
                hooks.LRScheduler(optimizer, scheduler),
                PreemptionHook(self.checkpointer, self._trainer),
                PeriodicCheckpointer(self.checkpointer, period),
                *added,
                hooks.CallbackHook(after_step=lambda t: self.lines.append(t.storage.latest())),
            ]
        )

    @property
    def model(self):
        return self._trainer.model

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def train(self, max_iter):
        self.run_loop(0, max_iter)
        return self


def batches(number, **bad):
    """Return batches; ``bad`` is {"loss" or "gradient": {index: factor}}."""
    generator = torch.Generator().manual_seed(1)
    one = torch.tensor(1.0)
    return [
        (
            torch.randn(4, 3, generator=generator),
            bad.get("loss", {}).get(i, one),
            bad.get("gradient", {}).get(i, one),
        )
        for i in range(number)
    ]


def everything(trainer):
    """Return weights, all buffers, and the optimizer's state, as a flat dict of copies."""
    state = dict(trainer.model.named_parameters()) | dict(trainer.model.named_buffers())
    momentum = trainer._trainer.optimizer.state_dict()["state"]
    state |= {f"momentum{i}": values["momentum_buffer"] for i, values in momentum.items()}
    return copy.deepcopy({name: tensor.detach() for name, tensor in state.items()})


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def file_names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("factor", BAD)
@pytest.mark.parametrize("kind, what", [("loss", "Loss"), ("gradient", "Gradients")])
def test_error_names_iteration_and_losses(tmp_path, kind, what, factor):
    """Nothing has changed since the last finished step, and nothing is saved."""
    expected = everything(Trainer(batches(2), tmp_path / "x").train(2))
    trainer = Trainer(batches(4, **{kind: {2: factor}}), tmp_path)
    with pytest.raises(FloatingPointError) as error:
        trainer.train(4)
    message = str(error.value)
    assert message.startswith(f"{what} became infinite or NaN at iteration=2")
    assert ", e.g. that of fc.weight!" in message or what == "Loss"
    assert "loss_dict = {'loss_a': " in message and "'loss_b': " in message
    assert "set SKIP to skip" in message
    assert_same(everything(trainer), expected)
    assert file_names(tmp_path) == []


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("bad, limit, iterations", [([1], 1, 4), ([1, 2], 2, 5), ([0, 2], 1, 5)])
def test_skipped_steps_leave_no_trace(tmp_path, kind, bad, limit, iterations, caplog):
    """Weights, buffers and momentum are those of a training without these batches."""
    factors = dict.fromkeys(bad, torch.tensor(torch.nan))
    data = batches(iterations, **{kind: factors})
    # a constant schedule, which goes on in skipped iterations
    trainer = Trainer(data, tmp_path, skip_nonfinite=limit, gamma=1)
    good = [batch for i, batch in enumerate(batches(iterations)) if i not in bad]
    expected = everything(Trainer(good, tmp_path / "x", gamma=1).train(len(good)))
    with caplog.at_level("WARNING"):
        trainer.train(iterations)
    assert_same(everything(trainer), expected)
    lines = [r.getMessage() for r in caplog.records if "the iteration is skipped" in r.message]
    assert [f"at iteration={i}:" in line for i, line in zip(bad, lines, strict=True)]
    if kind == "loss":
        json.dumps([line["total_loss"] for line in trainer.lines if "total_loss" in line])
        assert all(value == value for line in trainer.lines for value, _ in line.values())


def test_too_many_skipped_steps(tmp_path):
    bad = dict.fromkeys((0, 2, 3, 4), torch.tensor(torch.nan))
    with pytest.raises(FloatingPointError, match="at iteration=4!"):
        Trainer(batches(6, loss=bad), tmp_path, skip_nonfinite=2).train(6)


def test_count_of_skipped_steps_is_saved(tmp_path):
    """So that a resumed training stops at the same iteration."""
    bad = dict.fromkeys((1, 2, 3), torch.tensor(torch.nan))
    first = Trainer(batches(2, loss=bad), tmp_path, skip_nonfinite=2).train(2)
    second = Trainer(batches(4, loss=bad)[2:], tmp_path, skip_nonfinite=2)
    second._trainer.load_state_dict(first._trainer.state_dict())
    with pytest.raises(FloatingPointError, match="at iteration=3!"):
        second.run_loop(2, 4)


def test_float16_leaves_overflows_to_the_scaler(tmp_path, monkeypatch):
    """Many in a row are an error, however many good ones there were before."""
    monkeypatch.setattr(step_module, "_MAX_OVERFLOWS", 3)
    infinite = torch.tensor(torch.inf)

    def train(overflows, loss=()):
        bad = {
            "gradient": dict.fromkeys(overflows, infinite),
            "loss": dict.fromkeys(loss, infinite),
        }
        data = batches(8, **bad)
        return Trainer(data, tmp_path, precision=torch.float16).train(8)

    trainer = train([0, 1, 2, 4, 5, 6])
    assert trainer._trainer.grad_scaler.get_scale() == 2.0 ** (16 - 6)
    with pytest.raises(FloatingPointError, match="at iteration=6 and in the 3 before, at ever sm"):
        train([1, 3, 4, 5, 6])
    with pytest.raises(FloatingPointError, match="Loss became infinite or NaN at iteration=2!"):
        train([], loss=[2])


def test_processes_decide_together(tmp_path, monkeypatch):
    """One with a NaN loss, or a shard of a NaN gradient, is bad for all."""
    for theirs in (
        {"losses": {"loss_a": torch.nan, "loss_b": 0.0}},
        {"has_finite_gradients": False},
    ):
        gather = lambda own, theirs=theirs: [own, own._replace(**theirs)]  # noqa: E731
        monkeypatch.setattr(comm, "all_gather", gather)
        with pytest.raises(FloatingPointError, match="at iteration=0"):
            Trainer(batches(1), tmp_path).train(1)


def test_a_step_reads_once_from_the_device(tmp_path, monkeypatch):
    """All losses and the check of the gradients together, where detectron2 reads each loss."""
    trainer = Trainer(batches(1), tmp_path)
    reads = []

    def counted(name):
        function = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args: reads.append(name) or function(*args))

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        counted(name)
    trainer._trainer.iter = 0
    with EventStorage() as storage:
        trainer._trainer.run_step()
    assert reads == ["tolist"]
    assert storage.latest().keys() >= {"loss_a", "loss_b", "total_loss"}


# ------------------------------------------------------------------ other errors


class Fails(HookBase):
    """Raises an error before or after the step of an iteration."""

    def __init__(self, error, **iterations):
        self._error, self._iterations = error, iterations

    def before_step(self):
        self._raise("before")

    def after_step(self):
        self._raise("after")

    def _raise(self, when):
        if self.trainer.iter == self._iterations.get(when):
            raise self._error


def failing(data, index, error):
    """Yield batches, and raise an error instead of one of them."""
    for i, batch in enumerate(data):
        if i == index:
            raise error
        yield batch


ERRORS = [RuntimeError("CUDA out of memory"), UserError("x.jpg is truncated"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["data", "forward", "backward", "before", "after"])
def test_last_finished_iteration_is_saved(tmp_path, error, where):
    """As it was: buffers, schedule and iteration too. The error stays the same."""
    done = 2 if where == "after" else 1
    expected = Trainer(batches(4), tmp_path / "x").train(done + 1)
    data = batches(4)
    added = [Fails(error, **{where: 2})]
    trainer = Trainer(failing(data, 2, error) if where == "data" else data, tmp_path, added)
    forward = trainer.model.forward

    def fail_in_forward(batch):
        losses = forward(batch)
        if batch[0] is data[2][0]:
            if where == "forward":
                raise error
            losses["loss_a"].register_hook(lambda gradient: raise_(error))
        return losses

    if where in ("forward", "backward"):
        trainer.model.forward = fail_in_forward
    with pytest.raises(type(error)) as raised:
        trainer.train(4)
    assert error in (raised.value, raised.value.__cause__)
    name = f"model_{done:07d}.pth"
    assert file_names(tmp_path) == ["last_checkpoint", name]
    saved = torch.load(tmp_path / name, weights_only=True)
    assert saved["iteration"] == saved["trainer"]["iteration"] == done
    for key, value in expected.model.state_dict().items():
        assert torch.equal(saved["model"][key], value), key
    assert saved["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == done + 1


def raise_(error):
    raise error


def test_iteration_with_a_checkpoint_is_not_saved_again(tmp_path):
    trainer = Trainer(batches(4), tmp_path, [Fails(ValueError(), before=2)], period=2)
    times = []
    trainer.checkpointer.save = lambda name, save=trainer.checkpointer.save, **kwargs: (
        times.append(name),
        save(name, **kwargs),
    )
    with pytest.raises(ValueError):
        trainer.train(4)
    assert times == ["model_0000001"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(143), FloatingPointError("Loss became NaN")]
)
def test_exits_and_divergence_save_nothing(tmp_path, error):
    trainer = Trainer(batches(4), tmp_path, [Fails(error, before=2)])
    with pytest.raises(type(error)):
        trainer.train(4)
    assert file_names(tmp_path) == []


def test_error_before_the_first_iteration_saves_nothing(tmp_path):
    with pytest.raises(ValueError):
        Trainer(batches(4), tmp_path, [Fails(ValueError(), before=0)]).train(4)
    assert file_names(tmp_path) == []


def test_half_an_update_is_not_saved(tmp_path):
    trainer = Trainer(batches(4), tmp_path)
    step = trainer._trainer.optimizer.step

    def fail(*args):
        step()
        if trainer.iter == 2:
            raise RuntimeError("out of memory")

    trainer._trainer.optimizer.step = fail
    with pytest.raises(RuntimeError):
        trainer.train(4)
    assert file_names(tmp_path) == []


def test_no_evaluation_after_a_failure_in_the_last_iteration(tmp_path):
    evaluated = []
    added = [hooks.EvalHook(0, lambda: evaluated.append(1)), Fails(ValueError(), before=3)]
    with pytest.raises(ValueError):
        Trainer(batches(4), tmp_path, added).train(4)
    assert not evaluated


def test_full_disk_is_one_sentence(tmp_path):
    """In a file of detectron2, e.g. metrics.json; the disk is full for the checkpoint as well."""
    error = OSError(errno.ENOSPC, "No space left on device")
    trainer = Trainer(batches(4), tmp_path, [Fails(error, after=2)])
    with pytest.raises(UserError) as raised:
        trainer.train(4)
    assert str(raised.value) == (
        f"Cannot write into {tmp_path}: No space left on device. Make room for it, and continue "
        "with --resume."
    )


def test_checkpoint_on_a_full_disk(tmp_path, caplog):
    trainer = Trainer(batches(4), tmp_path, [Fails(ValueError("the reason"), before=2)])

    def fail(*args, **kwargs):
        raise UserError("Cannot write x: No space left on device.")

    trainer.checkpointer.save = fail
    with pytest.raises(ValueError, match="the reason"), caplog.at_level("WARNING"):
        trainer.train(4)
    assert "Cannot write x" in caplog.text
