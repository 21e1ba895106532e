import os
import subprocess
import sys

import pytest

from apa_det.utils import shell
from apa_det.utils.shell import apa_det_command


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder that is the environment's; returns its Python."""
    python = tmp_path / "my env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return python


def test_odd_words_are_quoted(environment):
    command = apa_det_command("eval", ["a b", "it's", "$HOME", "x"])
    assert command.endswith("""eval 'a b' 'it'"'"'s' '$HOME' x""")


def test_script_of_the_environment(environment, monkeypatch):
    script = environment.with_name("apa-det")
    script.write_text("")
    script.chmod(0o755)
    assert apa_det_command("train", []) == "'my env/bin/apa-det' train"
    monkeypatch.chdir("/usr")
    assert apa_det_command("train", []) == f"'{script}' train"
    monkeypatch.setenv("PATH", f"{script.parent}:/bin")  # the environment is activated
    assert apa_det_command("train", []) == "apa-det train"


def test_runs_without_the_script(tmp_path, monkeypatch):
    """From a checkout that is on PYTHONPATH only while the command is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shell, "_script", lambda: None)
    command = apa_det_command("evaluate-predictions", ["--help"])
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    options = {"shell": True, "env": variables, "capture_output": True, "text": True}
    result = subprocess.run(command, **options)
    assert result.returncode == 0 and "--image-root" in result.stdout, result.stderr
