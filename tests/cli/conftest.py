import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def start():
    """Start Python in a new process, with the checkout on its path."""

    def popen(*command, path=(), cwd=ROOT) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
            },
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is ignored if the tests run in the background of a shell
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    return popen


@pytest.fixture(scope="session")
def run(start):
    """Run Python in a new process; return exit status, stdout and stderr."""

    def wait(*command, **kwargs) -> tuple[int, str, str]:
        process = start(*command, **kwargs)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, out, err

    return wait
