"""Checkpoints on disk: complete, finite, the newest ones."""

import errno
import os
import signal

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apa_det.engine import read_job, setup_job
from apa_det.engine.run_folder import resume_candidates
from apa_det.engine.saving import AtomicCheckpointer, PeriodicCheckpointer
from apa_det.errors import UserError
from apa_det.utils import atomic_files


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.is_file())


@pytest.fixture
def checkpointer(tmp_path):
    return AtomicCheckpointer(nn.Linear(2, 2), str(tmp_path))


def test_file_is_that_of_detectron2(tmp_path):
    model, other = nn.Linear(2, 2), nn.BatchNorm1d(2)
    for kind in (AtomicCheckpointer, DetectionCheckpointer):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        kind(model, str(folder), other=other).save("model_0000001", iteration=1)
    ours, theirs = (sorted(tmp_path.glob("*/*")) for _ in range(2))
    assert [p.name for p in ours] == ["last_checkpoint", "model_0000001.pth"] * 2
    ours, theirs = ours[:2], theirs[2:]
    assert ours[0].read_bytes() == theirs[0].read_bytes()
    ours, theirs = (torch.load(p[1], weights_only=True) for p in (ours, theirs))
    assert list(ours) == list(theirs) == ["model", "other", "iteration"]
    for key in ("model", "other"):
        assert all(torch.equal(ours[key][name], theirs[key][name]) for name in theirs[key])


STEPS = ["_partial", "_sync", "_replace"]


@pytest.mark.parametrize("fails_at", range(2 * len(STEPS)))
def test_failure_at_every_write(checkpointer, tmp_path, monkeypatch, fails_at):
    """The last good state is intact, and last_checkpoint never names another one."""
    checkpointer.save("model_0000001", iteration=1)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    calls = []
    for step in STEPS:
        function = getattr(atomic_files, step)

        def call(*args, function=function):
            calls.append(function)
            if len(calls) == fails_at + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args)

        monkeypatch.setattr(atomic_files, step, call)
    with pytest.raises(UserError, match="Cannot write .*: No space left on device"):
        checkpointer.save("model_0000003", iteration=3)
    new = {"model_0000003.pth"} if fails_at >= len(STEPS) else set()
    assert set(names(tmp_path)) == {*before, *new}
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert checkpointer.saved_iteration == 1


def test_missing_folder(tmp_path):
    checkpointer = AtomicCheckpointer(nn.Linear(2, 2), str(tmp_path / "gone"))
    with pytest.raises(UserError, match="Cannot write .*gone/x.pth: No such file or directory"):
        checkpointer.save("x")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["model", "ema"])
def test_no_checkpoint_of_nonfinite_weights(tmp_path, value, where):
    model, ema = nn.Linear(2, 2), nn.BatchNorm1d(2)
    checkpointer = AtomicCheckpointer(model, str(tmp_path), ema=ema)
    with torch.no_grad():
        (model.bias if where == "model" else ema.running_var)[1] = value
    with pytest.raises(FloatingPointError, match="x is not saved.*(bias|running_var). Lower the"):
        checkpointer.save("x", iteration=1)
    assert names(tmp_path) == [] and checkpointer.saved_iteration is None


def test_model_with_an_infinite_mask(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    AtomicCheckpointer(model, str(tmp_path)).save("x", iteration=1)
    assert names(tmp_path) == ["last_checkpoint", "x.pth"]


def run(checkpointer, iterations, max_iter=10**6, **kwargs):
    hook = PeriodicCheckpointer(checkpointer, **kwargs)
    hook.max_iter = max_iter
    for iteration in iterations:
        hook.step(iteration)


def test_keeps_the_newest(checkpointer, tmp_path):
    """Of the periodic ones; those from before a resume count, and those of others stay."""
    (tmp_path / "model_best.pth").touch()
    (tmp_path / "model_coco.pth").touch()
    run(checkpointer, range(9), period=2, kept=2)
    others = ["model_best.pth", "model_coco.pth"]
    assert names(tmp_path) == ["last_checkpoint", "model_0000005.pth", "model_0000007.pth", *others]
    run(checkpointer, range(9, 12), max_iter=12, period=2, kept=3)
    kept = [f"model_{i:07d}.pth" for i in (7, 9, 11)]
    others.append("model_final.pth")
    assert names(tmp_path) == ["last_checkpoint", *kept, *others]


def save_all(folder, start):
    """Save 6 iterations with 2 kept, and model_final, from an iteration on."""
    checkpointer = AtomicCheckpointer(nn.Linear(2, 2), str(folder))
    run(checkpointer, range(start, 6), max_iter=6, period=1, kept=2)


@pytest.mark.parametrize("function", ["fsync", "replace", "remove"])
def test_killed_at_every_write(tmp_path, function):
    """Before and after each call: last_checkpoint names a whole file, and the end is the same."""
    (tmp_path / "whole").mkdir()
    save_all(tmp_path / "whole", 0)
    call, number, was_killed = getattr(os, function), 0, True
    while was_killed:
        folder = tmp_path / str(number)
        folder.mkdir()
        if os.fork() == 0:
            left = number

            def killed(*args):
                nonlocal left
                for step in (lambda: None, lambda: call(*args)):
                    step()
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            setattr(os, function, killed)
            save_all(folder, 0)
            os._exit(0)
        was_killed = os.wait()[1] == signal.SIGKILL
        start = 0
        if candidates := resume_candidates(str(folder)):
            start = torch.load(folder / candidates[0], weights_only=True)["iteration"] + 1
        save_all(folder, start)
        if start < 6:  # else there is nothing to do, and a lost deletion is not made up
            assert names(folder) == names(tmp_path / "whole")
        number += 1
    assert number > 7


def test_keeps_all_by_default(checkpointer, tmp_path):
    run(checkpointer, range(9), period=2)
    assert len(names(tmp_path)) == 5


def test_checkpoints_after_a_rollback_stay(checkpointer, tmp_path):
    """They are not newer than what the training has now, and not for it to delete."""
    run(checkpointer, range(8), period=1)
    run(checkpointer, range(3, 5), period=1, kept=1)
    expected = ["last_checkpoint", *(f"model_{i:07d}.pth" for i in range(4, 8))]
    assert names(tmp_path) == expected


def test_keeps_the_last_one(checkpointer, tmp_path, monkeypatch):
    """Even if it could not be replaced by a newer one in last_checkpoint."""
    run(checkpointer, [0], period=1)
    monkeypatch.setattr(checkpointer, "tag_last_checkpoint", lambda name: None)
    run(checkpointer, range(1, 5), period=1, kept=1)
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.pth", "model_0000004.pth"]


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 30) | st.sampled_from(["x", ""]))
def test_candidates(tmp_path_factory, iterations, last):
    """The one that is named, then the older ones; a name that is no iteration is the newest."""
    folder = tmp_path_factory.mktemp("candidates")
    for iteration in iterations:
        (folder / f"model_{iteration:07d}.pth").touch()
    assert resume_candidates(str(folder)) == []
    name = last if isinstance(last, str) else f"model_{last:07d}.pth"
    (folder / "last_checkpoint").write_text(f"{name}\n")
    limit = 31 if isinstance(last, str) else last
    older = sorted({i for i in iterations if i < limit}, reverse=True)
    assert resume_candidates(str(folder)) == [name, *(f"model_{i:07d}.pth" for i in older)]
    os.remove(folder / "last_checkpoint")


@pytest.mark.parametrize("is_lazy", [False, True])
def test_config_is_never_incomplete(arguments, lazy_arguments, output, monkeypatch, is_lazy):
    job = setup_job(lazy_arguments() if is_lazy else arguments())
    before = (output / "config.yaml").read_bytes()
    assert job.changed({"seed": 5}).save_config() is None
    after = (output / "config.yaml").read_bytes()
    assert after != before and read_job(str(output / "config.yaml")).seed == 5
    monkeypatch.setattr(atomic_files, "_replace", lambda *_: raise_(OSError(errno.ENOSPC, "Full")))
    with pytest.raises(UserError, match="Cannot write .*config.yaml: Full. Make room"):
        job.save_config()
    assert (output / "config.yaml").read_bytes() == after
    assert not list(output.glob("*.partial"))


def raise_(error):
    raise error
