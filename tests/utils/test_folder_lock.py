"""Locks of folders, against processes that are killed."""

import errno
import fcntl
import os
import signal

import pytest

from apa_det.errors import UserError
from apa_det.utils.folder_lock import lock_folder, unlock_folder


def in_child(function):
    """Run a function in a forked process; return its exit status, 7 after a UserError."""
    if (pid := os.fork()) == 0:
        try:
            function()
        except UserError as error:
            os.write(2, str(error).encode())
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_other_processes_are_refused(tmp_path, capfd):
    folder = str(tmp_path / "new")
    assert lock_folder(folder, "OUTPUT_DIR") is True
    assert lock_folder(f"{folder}/../new", "OUTPUT_DIR") is False
    assert in_child(lambda: lock_folder(folder, "OUTPUT_DIR")) == 7
    error = capfd.readouterr().err
    assert error.startswith(f"OUTPUT_DIR is {folder}, in which another training runs (process ")
    assert f"process {os.getpid()} on " in error and "\n" not in error
    unlock_folder(folder)
    unlock_folder(folder)
    assert in_child(lambda: lock_folder(folder, "OUTPUT_DIR")) == 0


def test_lock_ends_with_its_process(tmp_path):
    """Also if a process that it has forked lives on, as data workers do for some seconds."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        lock_folder(str(tmp_path), "OUTPUT_DIR")
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(write, str(worker).encode())
        signal.pause()
    worker = int(os.read(read, 100))
    try:
        with pytest.raises(UserError, match=f"process {pid} on "):
            lock_folder(str(tmp_path), "OUTPUT_DIR")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert lock_folder(str(tmp_path), "OUTPUT_DIR") is True
    finally:
        os.kill(worker, signal.SIGKILL)


def test_forked_process_does_not_end_the_lock(tmp_path):
    lock_folder(str(tmp_path), "OUTPUT_DIR")
    assert in_child(lambda: unlock_folder(str(tmp_path))) == 0
    assert in_child(lambda: lock_folder(str(tmp_path), "OUTPUT_DIR")) == 7


def test_folder_that_was_made_anew(tmp_path):
    lock_folder(str(tmp_path / "x"), "OUTPUT_DIR")
    os.rename(tmp_path / "x", tmp_path / "y")
    assert lock_folder(str(tmp_path / "x"), "OUTPUT_DIR") is True
    assert in_child(lambda: lock_folder(str(tmp_path / "x"), "OUTPUT_DIR")) == 7


def test_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    assert lock_folder(str(tmp_path), "OUTPUT_DIR") is True
    assert f"Cannot lock {tmp_path} (No locks available)" in caplog.text


def test_not_lockable(tmp_path):
    assert lock_folder("s3://bucket/run", "OUTPUT_DIR") is False
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write .*file/.lock: File exists"):
        lock_folder(str(tmp_path / "file"), "OUTPUT_DIR")
