import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apa_det.config import add_apa_config
from apa_det.engine import run, setup

ROOT = Path(__file__).parents[2]


def test_an_error_of_the_user_is_one_line(arguments):
    with pytest.raises(SystemExit) as exit_:
        run(setup, arguments("DATASETS.TRAIN", ("nowhere",)))
    assert exit_.value.code.startswith('error: No dataset named "nowhere" is registered.')


@pytest.mark.parametrize(
    "bug", [lambda args: int("five"), lambda args: add_apa_config(None), lambda args: {}["key"]]
)
def test_a_bug_keeps_its_traceback(arguments, bug):
    with pytest.raises((ValueError, AttributeError, KeyError)):
        run(bug, arguments())


def test_several_processes_say_it_once(arguments):
    args = arguments()
    command = [sys.executable, ROOT / "tools/train_net.py", "--config-file", args.config_file]
    command += ["--num-gpus", "2", "--dist-url", "auto", "MODEL.ROI_HEADS.NUM_CLASSES", "5"]
    result = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.count("error: The dataset engine_val has 4 classes") == 1
    assert "Traceback" not in result.stderr + result.stdout


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
        run(setup, arguments(num_gpus=num_gpus))
