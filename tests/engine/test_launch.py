import os
import subprocess
import sys
from pathlib import Path

import pytest

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
