import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase
from torch.multiprocessing import ProcessExitedException

from apa_det.engine import launch, run, setup_job


def exit_status(*arguments):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    return exit_.value.code


def interrupt(args):
    raise KeyboardInterrupt


def test_user_error_is_one_line(arguments, output, capsys):
    args = arguments("DATASETS.TRAIN", ("nowhere",))
    args.prog = "train_net.py"
    assert exit_status(setup_job, args) == 2
    err = capsys.readouterr().err
    assert err.startswith("train_net.py: ") and "nowhere" in err and err.count("\n") == 1
    assert err.partition(": ")[2] in (output / "log.txt").read_text()


@pytest.mark.parametrize("bug", [lambda args: int("five"), lambda args: {}["key"]])
def test_bug_keeps_its_traceback(arguments, bug):
    with pytest.raises((ValueError, KeyError)):
        run(bug, arguments())


def test_interrupt(arguments, capsys):
    assert exit_status(interrupt, arguments()) == 130
    assert capsys.readouterr() == ("", "")


def test_training_loop_does_not_log_the_traceback_too(arguments, capsys, output):
    """detectron2's loop logs it, also on stdout."""

    def train(args):
        setup_job(args)
        trainer = TrainerBase()
        trainer.run_step = lambda: 1 // 0
        trainer.train(0, 1)

    with pytest.raises(ZeroDivisionError):
        run(train, arguments())
    assert (output / "log.txt").read_text().count("ZeroDivisionError") == 1
    assert "ZeroDivisionError" not in "".join(capsys.readouterr())


def test_modules_are_imported_first(arguments, tmp_path):
    (tmp_path / "launched_module.py").write_text("raise ImportError('no package')")
    args = arguments()
    args.imports = [str(tmp_path / "launched_module.py")]
    assert exit_status(pytest.fail, args) == 2


@pytest.fixture
def forked(monkeypatch):
    """Processes are forked, because they take long to import everything."""
    set_handler = signal.signal
    before = set_handler(signal.SIGTERM, signal.SIG_DFL)  # forked processes inherit the handler
    fork = partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", fork)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    yield
    set_handler(signal.SIGTERM, before)


def test_two_processes_report_a_user_error_once(arguments, forked, capfd):
    args = arguments("MODEL.ROI_HEADS.NUM_CLASSES", 5, num_gpus=2)
    args.prog = "apa-det train"
    assert exit_status(setup_job, args) == 2
    out, err = capfd.readouterr()
    assert err.count("apa-det train: The dataset tiny_train has 4 classes") == 1
    assert "Traceback" not in err + out


def test_interrupt_in_a_worker(arguments, forked):
    assert exit_status(interrupt, arguments(num_gpus=2)) == 130


@pytest.mark.parametrize(
    "error, status",
    [
        (ProcessExitedException("", 0, 0, exit_code=3), 3),
        (ProcessExitedException("", 0, 0, exit_code=-signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_end_of_the_workers(arguments, monkeypatch, error, status):
    """After Ctrl-C they are ended too, if only this process has the signal."""
    workers = [SimpleNamespace(terminate=lambda: ended.append(True))]
    ended = []

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(launch, "launch", fail)
    monkeypatch.setattr(launch.multiprocessing, "active_children", lambda: workers)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert exit_status(setup_job, arguments(num_gpus=2)) == status
    assert ended == [True] * isinstance(error, KeyboardInterrupt)


TORCHRUN = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}


@pytest.mark.parametrize(
    "variables, num_gpus, message",
    [
        ({}, 2, "leave out --num-gpus and --num-machines, and give torchrun --nproc-per-node"),
        ({"LOCAL_WORLD_SIZE": None}, 1, "LOCAL_WORLD_SIZE, the number of processes on this mach"),
        ({"LOCAL_WORLD_SIZE": 2}, 1, "3 processes cannot be 2 on each machine"),
        ({}, 1, "torchrun has started 3 processes on this machine, which has 1 GPUs"),
    ],
)
def test_invalid_torchrun_job(arguments, monkeypatch, capsys, variables, num_gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {**TORCHRUN, **variables}.items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    assert exit_status(setup_job, arguments(num_gpus=num_gpus)) == 2
    assert message in capsys.readouterr().err


def test_other_torchrun_processes_wait_for_the_main_one(arguments, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(launch.time, "sleep", waited.append)
    for name, value in {**TORCHRUN, "RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert exit_status(setup_job, arguments()) == 2
    assert len(waited) == 1
