"""Signals in training with one process; test_distributed.py tests several."""

import multiprocessing
import os
import signal

import pytest
from detectron2.engine import HookBase
from torch.utils.data import DataLoader

from apa_det.engine import StrictCheckpointer, Trainer, preemption, setup_job

from ..conftest import read_metrics

NO_TEST = ("DATASETS.TEST", ())
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Killer(HookBase):
    """Sends this process signals in one iteration."""

    def __init__(self, iteration, *numbers):
        self._iteration, self._numbers = iteration, numbers or (signal.SIGTERM,)

    def before_step(self):
        if self.trainer.iter == self._iteration:
            for number in self._numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def same_handlers():
    """Restore the handlers, which a process that ends need not do. Tests may run under nohup."""
    numbers = (*NUMBERS, signal.SIGCHLD)
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def train(arguments):
    def run(*opts, kill_in=None, numbers=(), resume=False, hooks=()):
        trainer = Trainer(setup_job(arguments("SOLVER.MAX_ITER", 4, *opts, resume=resume)).config)
        trainer.register_hooks([Killer(kill_in, *numbers), *hooks])
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    return run


@pytest.fixture
def saves(monkeypatch):
    """The names of all checkpoints in the order in which they are saved."""
    names, save = [], StrictCheckpointer.save

    def record(self, name, **kwargs):
        names.append(name)
        save(self, name, **kwargs)

    monkeypatch.setattr(StrictCheckpointer, "save", record)
    return names


def checkpoints(output):
    return sorted(path.name for path in output.glob("*.pth"))


@pytest.mark.parametrize(
    "number, period", [(signal.SIGTERM, 2), *((number, 100) for number in NUMBERS)]
)
def test_saves_one_checkpoint(train, output, number, period):
    """Whether or not the iteration is one with a periodic checkpoint."""
    before = [signal.getsignal(n) for n in NUMBERS]
    options = (*NO_TEST, "SOLVER.CHECKPOINT_PERIOD", period)
    with pytest.raises(SystemExit) as exit_:
        train(*options, kill_in=1, numbers=[number])
    assert exit_.value.code == 128 + number
    assert [signal.getsignal(n) for n in NUMBERS] == before
    assert checkpoints(output) == ["model_0000001.pth"]
    assert f"{number.name}: saving a checkpoint" in (output / "log.txt").read_text()
    trainer = train(*options, resume=True)
    assert (trainer.start_iter, trainer.iter) == (2, 4)
    assert trainer.scheduler.last_epoch == 4


def test_several_signals_save_once(train, output, saves):
    """A terminal and a launcher may both send one; the first gives the status."""
    with pytest.raises(SystemExit) as exit_:
        train(*NO_TEST, kill_in=1, numbers=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    assert exit_.value.code == 130
    assert saves == ["model_0000001"]


def test_second_interrupt_leaves_at_once(train, output, capfd):
    with pytest.raises(KeyboardInterrupt):
        train(*NO_TEST, kill_in=1, numbers=[signal.SIGINT, signal.SIGINT])
    assert checkpoints(output) == []
    assert "Press Ctrl-C again to leave at once" in capfd.readouterr().err


def test_ignored_signal_stays_ignored(train, output):
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert train(*NO_TEST, kill_in=1, numbers=[signal.SIGHUP]).iter == 4
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_signal_in_the_last_iteration(train, output, monkeypatch):
    """The final evaluation is left to the resumed training, which writes its results once."""
    evaluated = []
    results = {"bbox": {"AP": 12.5}}
    test = staticmethod(lambda cfg, model: evaluated.append(1) or results)
    monkeypatch.setattr(Trainer, "test", test)
    with pytest.raises(SystemExit) as exit_:
        train(kill_in=3)
    assert exit_.value.code == 143
    assert checkpoints(output) == ["model_final.pth"] and not evaluated
    for _ in range(2):
        trainer = train(resume=True)
        assert trainer.start_iter == 4
        assert trainer._last_eval_results == results
    assert evaluated == [1]
    assert [line["iteration"] for line in read_metrics(output) if "bbox/AP" in line] == [4]
    assert "is finished, after 4 iterations" in (output / "log.txt").read_text()


@pytest.mark.parametrize("evaluation, last", [(1, "model_0000001.pth"), (2, "model_final.pth")])
@pytest.mark.parametrize("period", [2, 100])
def test_signal_in_evaluation(train, output, monkeypatch, saves, evaluation, last, period):
    """A checkpoint is saved and the process ends at once: evaluation may take too long.

    A data worker that dies meanwhile changes nothing. The iteration may be saved already.
    """
    evaluations, save = [], StrictCheckpointer.save
    options = ("TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", period)

    def test(cfg, model):
        evaluations.append(iter(DataLoader(range(9), num_workers=1)))
        if len(evaluations) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("The evaluation continued.")
        return {}

    def save_while_workers_end(self, *args, **kwargs):
        if len(evaluations) == evaluation:
            worker = evaluations[-1]._workers[0]
            worker.kill()
            worker.join()
        save(self, *args, **kwargs)

    monkeypatch.setattr(StrictCheckpointer, "save", save_while_workers_end)
    monkeypatch.setattr(Trainer, "test", staticmethod(test))
    with pytest.raises(SystemExit) as exit_:
        train(*options, kill_in=None)
    assert exit_.value.code == 143
    assert (output / "last_checkpoint").read_text() == last
    assert len(saves) == len(set(saves))
    for loader in evaluations:  # else torch's handler of SIGCHLD finds the killed workers
        loader._shutdown_workers()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(StrictCheckpointer, "save", save)
    train(*options, resume=True)
    assert len(evaluations) == 3  # the one that was cut off is repeated
    for loader in evaluations:
        loader._shutdown_workers()


def test_data_workers_are_shielded(train):
    """They get no signal of the process group, and neither Ctrl-C nor SIGHUP ends them.

    A worker that is just forked gets both; the training gets one at the same time.
    """
    fork, groups, others = os.fork, [], multiprocessing.active_children()

    class GroupRecorder(HookBase):
        def after_step(self):
            workers = [p for p in multiprocessing.active_children() if p not in others]
            groups.append([os.getpgid(worker.pid) == worker.pid for worker in workers])

    def fork_and_signal():
        pid = fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
        elif len(groups) == 0:
            os.kill(os.getpid(), signal.SIGHUP)
        return pid

    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit) as exit_:
        monkeypatch.setattr(os, "fork", fork_and_signal)
        hooks = [GroupRecorder()]
        train(*NO_TEST, "DATALOADER.NUM_WORKERS", 2, hooks=hooks)
    assert exit_.value.code == 129
    train(*NO_TEST, "DATALOADER.NUM_WORKERS", 2, hooks=hooks, resume=True)
    assert len(groups) == 3 and all(map(all, groups)) and all(map(len, groups))


def test_children_outside_of_training_are_not_shielded():
    if (pid := os.fork()) == 0:
        os._exit(os.getpgrp() == os.getpid() or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
    assert os.waitpid(pid, 0)[1] == 0


def test_end_of_the_launcher(train, output, monkeypatch):
    """It ends like a SIGTERM; a process without a launcher may get another parent."""
    parents = [1, 1, 7, 7, 7, 7]
    monkeypatch.setattr(preemption, "_parent", None)
    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    preemption.watch_parent()
    with pytest.raises(SystemExit) as exit_:
        train(*NO_TEST)
    assert exit_.value.code == 143
    assert checkpoints(output) == ["model_0000001.pth"]
    monkeypatch.setattr(preemption, "_parent", None)
    assert train(*NO_TEST, resume=True).iter == 4
