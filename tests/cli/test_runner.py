"""How a command ends: exit statuses, one line for errors of the user, tracebacks for others."""

import logging
import signal
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.logger import setup_logger
from torch.utils.data import DataLoader

from apa_det.errors import MissingFileError, UserError
from apa_det.utils.writable import require_writable_file, require_writable_folder
from apa_det_cli.flags import add_import, command_parser
from apa_det_cli.runner import run_command


def command(run):
    def parser(prog):
        result = command_parser(prog, "A command.")
        add_import(result)
        return result

    return SimpleNamespace(parser=parser, run=run)


def raising(error):
    def run(args):
        raise error

    return command(run)


@pytest.mark.parametrize(
    "run, status",
    [(lambda args: None, 0), (lambda args: 1, 1)],
)
def test_status_of_a_command_that_ends(run, status, capsys):
    assert run_command(command(run), []) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [UserError, MissingFileError])
def test_error_of_the_user(error, tmp_path, capsys):
    setup_logger(str(tmp_path), name="apa_det")
    assert run_command(raising(error("X must be >= 0.")), [], "apa-det x") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "apa-det x: X must be >= 0.\n")
    log = (tmp_path / "log.txt").read_text()
    assert "X must be >= 0." in log and "Traceback" not in log


def test_errors_print(tmp_path, capsys):
    setup_logger(str(tmp_path), name="apa_det")
    assert run_command(raising(UserError("No \x1b[31mred\x07.\nSecond line.")), [], "x") == 2
    shown = "No \\x1b[31mred\\x07.\nSecond line."
    assert capsys.readouterr().err == f"x: {shown}\n"
    assert shown in (tmp_path / "log.txt").read_text()


def test_interrupt(capsys):
    assert run_command(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("a bug"), OSError("a bug"), RuntimeError("a bug")]
)
def test_any_other_error_keeps_its_traceback(error, tmp_path, capsys):
    for name in ("apa_det", "detectron2"):  # they share log.txt
        setup_logger(str(tmp_path), name=name)
    for _ in range(2):  # it may pass several places that report it
        with pytest.raises(type(error), match="a bug"):
            run_command(raising(error), [])
    log = (tmp_path / "log.txt").read_text()
    assert log.count("Traceback") == 1 and "in raising" not in log and "a bug" in log
    assert capsys.readouterr() == ("", "")  # Python prints it once, as the process ends


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("image.jpg is broken.")


def test_error_of_the_user_in_a_data_worker(capsys):
    run = command(lambda args: list(DataLoader(Broken(), num_workers=1)))
    assert run_command(run, [], "train") == 2
    assert capsys.readouterr().err == "train: image.jpg is broken.\n"


def test_ctrl_c(start, tmp_path):
    """As from a terminal, while a module is imported."""
    (tmp_path / "slow.py").write_text('import time\nprint("ready", flush=True)\ntime.sleep(300)\n')
    process = start(
        *("tools/average_checkpoints.py", "a", "--output", "b.pth"),
        *("--import", tmp_path / "slow.py"),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in out + err


BROKEN_HEAD = """
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from apa_det.modeling import APAFastRCNNConvFCHead

@ROI_BOX_HEAD_REGISTRY.register()
class BrokenHead(APAFastRCNNConvFCHead):
    def forward(self, x):
        return x / (1 // 0)
"""


def test_a_bug_in_training(run, quickstart, tmp_path):
    """Its traceback is on stderr and in log.txt, once each, and not on stdout."""
    (tmp_path / "broken.py").write_text(BROKEN_HEAD)
    output = tmp_path / "output"
    flags = ["--config-file", quickstart.yaml, "--import", tmp_path / "broken.py"]
    opts = ["OUTPUT_DIR", output, "MODEL.ROI_BOX_HEAD.NAME", "BrokenHead"]
    status, out, err = run("tools/train_net.py", *flags, *quickstart.opts, *opts)
    assert status == 1, err
    log = (output / "log.txt").read_text()
    for text in (err, log):
        assert text.count("Traceback (most recent call last)") == 1
        assert text.count("ZeroDivisionError") == 1
    assert "Traceback" not in out
    # the kept config names the module, but does not import it
    assert str(tmp_path / "broken.py") in (output / "config.yaml").read_text()
    status, out, err = run("tools/train_net.py", "--config-file", output / "config.yaml")
    assert status == 2 and "got 'BrokenHead'. Fix the name, or give --import" in err
    assert f"--import {tmp_path / 'broken.py'}" in out + err


def test_an_error_of_the_user_in_two_processes(run, quickstart, tmp_path):
    """Both import the module of the user; one line is printed."""
    module = "import os, pathlib\npathlib.Path(__file__).with_name(str(os.getpid())).touch()\n"
    (tmp_path / "module.py").write_text(module)
    flags = ["--config-file", quickstart.yaml, "--num-gpus", "2", "--dist-url", "auto"]
    flags += ["--import", tmp_path / "module.py"]
    opts = ["OUTPUT_DIR", tmp_path / "output", "MODEL.ROI_HEADS.NUM_CLASSES", "5"]
    status, out, err = run("-m", "apa_det_cli", "train", *flags, *quickstart.opts, *opts)
    assert status == 2, err
    assert err.count("apa-det train: The dataset tiny_train has 4 classes") == 1
    assert "Traceback" not in out + err
    assert len([p for p in tmp_path.iterdir() if p.name.isdigit()]) == 3  # and the first process


def test_outputs_that_cannot_be_written(tmp_path):
    file = tmp_path / "file.json"
    file.touch()
    require_writable_file(str(file), ".json")
    require_writable_file(str(tmp_path / "new/new/out.json"), ".json")
    require_writable_folder(str(tmp_path / "new/new"))
    assert not (tmp_path / "new").exists()
    for function, arguments, message in (
        (require_writable_file, (tmp_path / "out.txt", ".json"), "must name a .json file, got"),
        (require_writable_file, (tmp_path, ""), "is a folder"),
        (require_writable_file, (file / "out.json", ".json"), "file.json is a file"),
        (require_writable_folder, (file,), "file.json is a file"),
        (require_writable_folder, (file / "a/b",), "file.json is a file"),
        (require_writable_folder, ("/proc/out",), "/proc is not writable"),
    ):
        path, *rest = map(str, arguments)
        with pytest.raises(UserError, match=f"^--output .*{message}"):
            function(path, *rest)


def test_loggers_without_files(capsys):
    setup_logger(name="apa_det")
    logging.getLogger("apa_det").addHandler(logging.NullHandler())
    with pytest.raises(ValueError):
        run_command(raising(ValueError("a bug")), [])
    assert "Traceback" not in "".join(capsys.readouterr())
