"""The set-up of the project: make, setup.py, the import message and scripts/setup_env.sh.

setup_env.sh runs here with a stand-in for Python that answers at once and notes what it was asked.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for the base Python and, copied to .venv/bin/python, for the one of .venv. Fails where
# the file `fail` holds a word of the command.
FAKE_PYTHON = r"""#!/bin/bash
echo "$*" >>calls
if [[ -s fail && "$*" == *"$(<fail)"* ]]; then echo "no such package"; exit 1; fi
case "$*" in
"-" | "-I -") cat >/dev/null; echo 3.12 ;;
"-m venv .venv") mkdir -p .venv/bin .venv/site; cp "$0" .venv/bin/python ;;
"-c import sysconfig"*) echo .venv/site ;;
*"--target .venv/detectron2"*) mkdir -p .venv/detectron2/{detectron2,tools} ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with setup_env.sh, the pins and the stand-in for Python."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "scripts/setup_env.sh", tmp_path / "tools")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return tmp_path


def start(checkout, base_python="./python"):
    return subprocess.Popen(
        ["bash", "scripts/setup_env.sh"],
        cwd=checkout,
        env={**os.environ, "BASE_PYTHON": base_python},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def set_up(checkout, **kwargs):
    """(exit status, stdout, stderr) of setup_env.sh."""
    process = start(checkout, **kwargs)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def builds(checkout):
    return (checkout / "calls").read_text().count("-m venv")


def test_env_is_made_once(checkout):
    status, out, err = set_up(checkout)
    assert status == 0, err
    assert "[6/6]" in out and "is ready" in out
    assert (checkout / ".venv/site/detectron2").is_dir()
    assert not (checkout / ".venv/site/tools").exists()

    assert set_up(checkout) == (0, "", "")
    assert builds(checkout) == 1


@pytest.mark.parametrize(
    "path, text",
    [
        ("requirements/environment.txt", "torch==0.0\n"),
        (".venv/.apa_det", ""),  # an interrupted install
        (".venv/.apa_det", "setup_env 1, Python 3.12, pins"),
    ],
)
def test_env_is_remade_when_pins_change_or_stamp_is_damaged(checkout, path, text):
    set_up(checkout)
    (checkout / path).write_text(text)
    (checkout / ".venv/left-over").touch()
    assert set_up(checkout)[0] == 0
    assert builds(checkout) == 2
    assert not (checkout / ".venv/left-over").exists()


@pytest.mark.parametrize(
    "command, step",
    [
        ("-m venv", "step 1"),
        ("installer.txt", "step 2"),
        ("environment.txt", "step 3"),
        ("detectron2.txt", "step 4"),
        ("-e .", "step 5"),
        ("check_env.py", "step 6"),
    ],
)
def test_failing_step_is_named_and_done_again(checkout, command, step):
    (checkout / "fail").write_text(command)
    status, _, err = set_up(checkout)
    assert status == 1
    assert step in err and "no such package" in err and "What to do" in err

    (checkout / "fail").unlink()
    assert set_up(checkout)[0] == 0
    assert builds(checkout) == 2


def test_venv_of_another_origin_is_left_alone(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/pyvenv.cfg").write_text("mine")
    status, _, err = set_up(checkout)
    assert status == 1
    assert "did not make" in err and "PYTHON=.venv/bin/python" in err
    assert (checkout / ".venv/pyvenv.cfg").read_text() == "mine"


def test_python_that_does_not_run(checkout):
    status, _, err = set_up(checkout, base_python="false")
    assert status == 1
    assert "false (does not run)" in err and "install Python 3.10 to 3.13" in err


def test_two_at_once_make_one_env(checkout):
    processes = [start(checkout) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert builds(checkout) == 1


def test_make_help_lists_the_targets():
    out = subprocess.check_output(["make", "-s"], cwd=ROOT, text=True)
    for target in ("quickstart", "test", "lint", "benchmark"):
        assert f"make {target} " in out


def test_make_with_an_own_python_names_what_it_lacks():
    # -I -S: this Python without any package
    out = subprocess.run(
        [sys.executable, "-I", "-S", "scripts/check_env.py", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 1
    for name in ("torch", "detectron2", "lvis", "pytest"):
        assert f"  {name}: ModuleNotFoundError" in out.stderr


def test_install_leaves_torch_and_detectron2_alone():
    script = (
        "import setuptools; from distutils.core import run_setup; "
        "dist = run_setup('setup.py', stop_after='init'); "
        "print(*dist.install_requires, dist.python_requires)"
    )
    out = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)
    assert ">=3.10" in out
    for name in ("torch", "detectron2", "lvis", "opencv"):
        assert name not in out


def test_import_without_detectron2_says_how_to_install_it():
    script = "import sys; sys.modules['detectron2'] = None; import apa_det"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 1
    assert "ImportError: apa_det needs detectron2" in out.stderr and "install" in out.stderr
