"""SIGTERM in training with one process; test_distributed.py tests two."""

import multiprocessing
import os
import signal
import time

import pytest
from detectron2.engine import HookBase
from torch.utils.data import DataLoader

from apa_det.engine import StrictCheckpointer, Trainer, setup_job


class Killer(HookBase):
    """Sends this process a SIGTERM in one iteration."""

    def __init__(self, iteration):
        self._iteration = iteration

    def before_step(self):
        if self.trainer.iter == self._iteration:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def train(arguments):
    def run(*opts, kill_in=None, resume=False, hooks=()):
        trainer = Trainer(setup_job(arguments("SOLVER.MAX_ITER", 4, *opts, resume=resume)).config)
        trainer.register_hooks([Killer(kill_in), *hooks])
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("period", [2, 100])
def test_saves_one_checkpoint(train, output, period):
    """Whether or not the iteration is one with a periodic checkpoint."""
    before = signal.getsignal(signal.SIGTERM)
    options = ("DATASETS.TEST", (), "SOLVER.CHECKPOINT_PERIOD", period)
    with pytest.raises(SystemExit) as exit_:
        train(*options, kill_in=1)
    assert exit_.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in output.glob("*.pth")] == ["model_0000001.pth"]
    assert "SIGTERM: saving a checkpoint" in (output / "log.txt").read_text()
    trainer = train(*options, resume=True)
    assert (trainer.start_iter, trainer.iter) == (2, 4)
    assert trainer.scheduler.last_epoch == 4


def test_signal_in_the_last_iteration(train, output, monkeypatch):
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda cfg, model: {}))
    train("TEST.EVAL_PERIOD", 2, kill_in=3)
    assert (output / "model_final.pth").exists()


@pytest.mark.parametrize("evaluation, last", [(1, "model_0000001.pth"), (2, "model_final.pth")])
def test_signal_in_evaluation(train, output, monkeypatch, evaluation, last):
    """A checkpoint is saved and the process ends at once: evaluation may take too long."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)}
    evaluations, save = [], StrictCheckpointer.save

    def test(cfg, model):
        evaluations.append(iter(DataLoader(range(9), num_workers=1)))
        if len(evaluations) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("The evaluation continued.")
        return {}

    def save_while_workers_end(self, *args, **kwargs):
        if len(evaluations) == evaluation:
            evaluations[-1]._workers[0].kill()
            time.sleep(0.2)
        save(self, *args, **kwargs)

    monkeypatch.setattr(StrictCheckpointer, "save", save_while_workers_end)
    monkeypatch.setattr(Trainer, "test", staticmethod(test))
    with pytest.raises(SystemExit) as exit_:
        train("TEST.EVAL_PERIOD", 2, kill_in=None)
    assert exit_.value.code == 143
    assert [path.name for path in output.glob("*.pth")] == [last]
    for loader in evaluations:  # else torch's handler of SIGCHLD finds the killed workers
        loader._shutdown_workers()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    monkeypatch.setattr(StrictCheckpointer, "save", save)
    train("TEST.EVAL_PERIOD", 2, resume=True)
    assert len(evaluations) == evaluation + 1


def test_data_workers_have_their_own_process_groups(train):
    """So they do not get the SIGTERM that torchrun sends to the group of their process."""
    groups, others = [], multiprocessing.active_children()

    class GroupRecorder(HookBase):
        def after_step(self):
            workers = [p for p in multiprocessing.active_children() if p not in others]
            groups.append([os.getpgid(worker.pid) == worker.pid for worker in workers])

    train(
        "SOLVER.MAX_ITER",
        2,
        "DATASETS.TEST",
        (),
        "DATALOADER.NUM_WORKERS",
        2,
        hooks=[GroupRecorder()],
    )
    assert groups == [[True, True]] * 2
