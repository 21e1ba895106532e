import signal
from functools import partial

import pytest
import torch

from apa_det.config import add_apa_config
from apa_det.engine import run, setup_job


def test_an_error_of_the_user_is_one_line(arguments):
    with pytest.raises(SystemExit) as exit_:
        run(setup_job, arguments("DATASETS.TRAIN", ("nowhere",)))
    assert exit_.value.code.startswith('error: No dataset named "nowhere" is registered.')


@pytest.mark.parametrize(
    "bug", [lambda args: int("five"), lambda args: add_apa_config(None), lambda args: {}["key"]]
)
def test_a_bug_keeps_its_traceback(arguments, bug):
    with pytest.raises((ValueError, AttributeError, KeyError)):
        run(bug, arguments())


def test_several_processes_say_it_once(arguments, monkeypatch, capfd):
    """Forked, as it takes them long to import everything."""
    fork = partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", fork)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit_:
        run(setup_job, arguments("MODEL.ROI_HEADS.NUM_CLASSES", 5, num_gpus=2))
    assert exit_.value.code == 1
    out, err = capfd.readouterr()
    assert err.count("error: The dataset engine_val has 4 classes") == 1
    assert "Traceback" not in err + out


TORCHRUN = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}


@pytest.mark.parametrize(
    "variables, num_gpus, message",
    [
        ({}, 2, "leave out --num-gpus and --num-machines, and give torchrun --nproc-per-node"),
        ({"LOCAL_WORLD_SIZE": None}, 1, "LOCAL_WORLD_SIZE, the number of processes on this mach"),
        ({"LOCAL_WORLD_SIZE": 2}, 1, "3 processes are not 2 on each machine"),
        ({}, 1, "torchrun has started 3 processes on this machine, which has 1 GPUs"),
    ],
)
def test_torchrun_that_cannot_work(arguments, monkeypatch, variables, num_gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {**TORCHRUN, **variables}.items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(setup_job, arguments(num_gpus=num_gpus))
