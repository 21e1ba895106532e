"""The set-up of the project: make, setup.py and scripts/setup_env.sh.

setup_env.sh runs with a fake Python that records its commands and returns at once.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The fake base Python; copied to .venv/bin/python, it is also that of .venv. It fails for commands
# that contain the text in the file `fail`.
FAKE_PYTHON = r"""#!/bin/bash
echo "$*" >>calls
if [[ -e slow ]]; then sleep 0.1; fi
if [[ -s fail && "$*" == *"$(<fail)"* ]]; then echo "no such package"; exit 1; fi
case "$*" in
"-" | "-I -") cat >/dev/null; echo 3.12 ;;
"-m venv "*) mkdir -p "$3"/{bin,site}; cp "$0" "$3/bin/python" ;;
"-c import sysconfig"*) echo .venv/site ;;
*"--target .venv/detectron2"*) mkdir -p .venv/detectron2/{detectron2,tools} ;;
esac
"""


def make_checkout(folder):
    """Create a folder with setup_env.sh, the pins and the fake Python."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup_env.sh", folder / "scripts")
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    python = folder / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return folder


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a checkout of Zoë")


def start(checkout, base_python="./python", **environment):
    return subprocess.Popen(
        ["bash", "scripts/setup_env.sh"],
        cwd=checkout,
        env={**os.environ, "BASE_PYTHON": base_python, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def set_up(checkout, **kwargs):
    """Run setup_env.sh and return (exit status, stdout, stderr)."""
    process = start(checkout, **kwargs)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def builds(checkout):
    return (checkout / "calls").read_text().count("-m venv")


def test_env_is_created_once(checkout):
    status, out, err = set_up(checkout)
    assert status == 0, err
    assert "[6/6]" in out and "is ready" in out
    assert (checkout / ".venv/site/detectron2").is_dir()
    assert not (checkout / ".venv/site/tools").exists()

    assert set_up(checkout) == (0, "", "")
    assert builds(checkout) == 1


def test_apa_det_is_installed_again_when_setup_py_changes(checkout):
    set_up(checkout)
    (checkout / "setup.py").touch()
    os.utime(checkout / ".venv/.apa_det", (0, 0))
    status, out, err = set_up(checkout)
    assert (status, out, err) == (0, "Installing apa_det again because setup.py changed.\n", "")
    assert (checkout / "calls").read_text().count("-e .") == 2
    assert set_up(checkout) == (0, "", "")
    assert builds(checkout) == 1


@pytest.mark.parametrize(
    "path, text",
    [
        ("requirements/environment.txt", "torch==0.0\n"),
        (".venv/.apa_det", ""),  # an interrupted installation
        (".venv/.apa_det", "setup_env 1, Python 3.12, pins"),
    ],
)
def test_env_is_created_again_when_pins_change_or_stamp_is_damaged(checkout, path, text):
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
def test_failed_step_is_named_and_repeated(checkout, command, step):
    (checkout / "fail").write_text(command)
    status, _, err = set_up(checkout)
    assert status == 1
    assert step in err and "no such package" in err and "What to do" in err

    (checkout / "fail").unlink()
    assert set_up(checkout)[0] == 0
    assert builds(checkout) == 2


def test_foreign_venv_is_not_changed(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/pyvenv.cfg").write_text("mine")
    status, _, err = set_up(checkout)
    assert status == 1
    assert "did not create" in err and "PYTHON=.venv/bin/python" in err
    assert (checkout / ".venv/pyvenv.cfg").read_text() == "mine"


def test_venv_may_be_a_link(checkout, tmp_path):
    disk = tmp_path / "another disk/env"
    disk.parent.mkdir()
    (checkout / ".venv").symlink_to(disk)
    for _ in range(2):
        assert set_up(checkout)[0] == 0
    assert (checkout / ".venv").is_symlink() and (disk / "bin/python").is_file()
    assert builds(checkout) == 1


def test_link_without_a_disk(checkout, tmp_path):
    (checkout / ".venv").symlink_to(tmp_path / "not mounted/env")
    status, _, err = set_up(checkout)
    assert status == 1
    assert f"The link .venv names {tmp_path}/not mounted/env, which does not exist" in err


def test_link_to_foreign_files_and_to_another_checkout(checkout, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/precious").touch()
    (checkout / ".venv").symlink_to(tmp_path / "data")
    status, _, err = set_up(checkout)
    assert status == 1 and "did not create" in err
    assert (tmp_path / "data/precious").exists()

    other = make_checkout(tmp_path / "other")
    assert set_up(other)[0] == 0
    (checkout / ".venv").unlink()
    (checkout / ".venv").symlink_to(other / ".venv")
    status, _, err = set_up(checkout)
    assert status == 1 and f"that of the checkout {other}" in err
    assert set_up(other) == (0, "", "")

    moved = other.rename(tmp_path / "moved")
    assert set_up(moved)[0] == 0
    assert builds(moved) == 2


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere(checkout, seed):
    """The script alone, so that its pip goes on, or all of its processes."""
    rng = random.Random(seed)
    (checkout / "slow").touch()
    for kill in (os.kill, os.killpg, os.killpg):
        process = start(checkout)
        time.sleep(rng.uniform(0.05, 1.5))
        if process.poll() is None:
            kill(process.pid, signal.SIGKILL)
        process.stdout.close(), process.stderr.close()
        process.wait()
    status, _, err = set_up(checkout)
    assert status == 0, err
    assert (checkout / ".venv/site/detectron2").is_dir()
    assert not (checkout / ".venv/detectron2").exists()
    assert set_up(checkout) == (0, "", "")


def test_another_environment_is_activated(checkout, tmp_path):
    active = tmp_path / "active"
    names = "VIRTUAL_ENV PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_PYTHON".split()
    script = (checkout / "python").read_text()
    log = 'env | grep -E "^(PYTHON|PIP_)" >>environment\n'
    (checkout / "python").write_text(script.replace('echo "$*"', log + 'echo "$*"', 1))
    process = start(checkout, **{name: str(active) for name in names})
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert str(active) not in (checkout / "environment").read_text()
    assert not active.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_cannot_change_the_env(checkout, tmp_path):
    set_up(checkout)
    (checkout / "requirements/environment.txt").write_text("torch==0.0\n")
    for folder in (checkout, *list(checkout.parents)[:-2]):
        folder.chmod(0o755)
    process = subprocess.run(
        ["bash", "scripts/setup_env.sh"], cwd=checkout, user=65534, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "is not writable for the user nobody" in process.stderr


def test_python_that_does_not_run(checkout):
    status, _, err = set_up(checkout, base_python="false")
    assert status == 1
    assert "false (does not run)" in err and "install Python 3.10 to 3.13" in err


def test_two_processes_create_one_env(checkout):
    processes = [start(checkout) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    assert builds(checkout) == 1


def test_make_help_lists_the_targets():
    out = subprocess.check_output(["make", "-s"], cwd=ROOT, text=True)
    for target in ("quickstart", "test", "lint", "benchmark"):
        assert f"make {target} " in out


def test_check_env_names_missing_packages():
    # -I -S: this Python without packages
    out = subprocess.run(
        [sys.executable, "-I", "-S", "scripts/check_env.py", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 1
    for name in ("torch", "detectron2", "lvis", "pytest"):
        assert f"  {name}: ModuleNotFoundError" in out.stderr


def test_install_does_not_require_torch_or_detectron2():
    script = (
        "import setuptools; from distutils.core import run_setup; "
        "dist = run_setup('setup.py', stop_after='config'); "
        "print(*dist.install_requires, dist.python_requires)"
    )
    out = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)
    assert ">=3.10" in out
    for name in ("torch", "detectron2", "lvis", "opencv"):
        assert name not in out
