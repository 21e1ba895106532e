"""Files that are complete or unchanged: full disks, failures at every step, folders in the way."""

import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from apa_det.errors import UserError
from apa_det.utils import atomic_files
from apa_det.utils.atomic_files import open_atomic
from apa_det.utils.json_files import json_list, write_json

OLD = b"old content"
WRITERS = {
    "bytes": lambda path: write(path, b"x" * 100_000),
    "torch": lambda path: save({"model": torch.zeros(50_000)}, path),
    "json": lambda path: write_json(list(range(50_000)), path),
    "json_list": lambda path: write_list([{"a": i} for i in range(20_000)], path),
}


def write(path, data):
    with open_atomic(path, "wb") as file:
        file.write(data)


def save(content, path):
    with open_atomic(path, "wb") as file:
        torch.save(content, file)


def write_list(records, path):
    with json_list(path) as append:
        for record in records:
            append(record)


@pytest.fixture(params=[True, False], ids=["replaces", "is_new"])
def path(request, tmp_path):
    if request.param:
        (tmp_path / "file").write_bytes(OLD)
    return tmp_path / "file"


def files(path):
    """Return the contents of all files in the folder of a file."""
    return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("free", [0, 10, 20_000])
def test_full_disk(path, writer, free, monkeypatch):
    """Each write beyond the free bytes fails; torch.save hides the reason."""
    before = files(path)
    left = free

    def write(self, data):
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return io.FileIO.write(self, data)

    monkeypatch.setattr(atomic_files._File, "write", keeping_the_error(write))
    with pytest.raises(UserError) as error:
        WRITERS[writer](path)
    assert (
        str(error.value) == f"Cannot write {path}: No space left on device. Make room for it first."
    )
    assert files(path) == before


def keeping_the_error(write):
    def wrapped(self, data):
        try:
            return write(self, data)
        except OSError as error:
            self.error = error
            raise

    return wrapped


def test_limit_of_the_system(tmp_path):
    """Without any replaced function: the system limits the size of files, in its own process."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
from apa_det.utils.atomic_files import open_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with open_atomic({str(tmp_path / "file")!r}, "wb") as file:
        torch.save(torch.zeros(100_000), file)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("UserError Cannot write "), done
    assert list(tmp_path.iterdir()) == []


STEPS = ("_partial", "_sync", "_replace")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "Read-only file system"), KeyboardInterrupt()]
)
def test_failure_at_every_step(path, step, error, monkeypatch):
    before = files(path)

    def fail(*args):
        raise error

    monkeypatch.setattr(atomic_files, step, fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        write(path, b"new")
    assert isinstance(raised.value, UserError) == isinstance(error, OSError)
    assert files(path) == before


@pytest.mark.parametrize("step", ["_sync", "_replace"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_every_step(path, step, before):
    """A child is killed by signal 9; the next writer removes what it left."""
    old = files(path)
    if os.fork() == 0:
        function = getattr(atomic_files, step)

        def killed(*args):
            if before:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(atomic_files, step, killed)
        write(path, b"new")
        os._exit(0)
    assert os.wait()[1] == signal.SIGKILL
    content = files(path)
    content.pop("file.partial", None)
    assert content == ({"file": b"new"} if (step, before) == ("_replace", False) else old)
    write(path, b"newer")
    assert files(path) == {"file": b"newer"}


def test_error_of_the_body_is_raised_as_it_is(path):
    before = files(path)
    for error in (OSError("of another file"), ValueError("of the caller"), KeyError("x")):
        with pytest.raises(type(error)) as raised, open_atomic(path) as file:
            file.write("half")
            raise error
        assert raised.value is error
        assert files(path) == before


def test_things_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "full.partial").mkdir()
    for name, reason in {
        "folder": "Is a directory",
        "file/x": "Not a directory",
        "missing/x": "No such file or directory",
        "full": "Is a directory",
    }.items():
        with pytest.raises(UserError, match=f"Cannot write {tmp_path}/{name}: {reason}."):
            write(tmp_path / name, b"")
    assert files(tmp_path / "file") == {"file": OLD}


def test_synced_before_it_is_renamed(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, n=name, f=function: (calls.append(n), f(*args))[1]
        )
    write(path, b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the content, the name, the folder
    assert path.read_bytes() == b"new"


def test_file_system_without_sync(path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    write(path, b"new")
    assert path.read_bytes() == b"new"


def test_links_and_devices_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/file")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere/file").read_bytes() == b"new"
    write("/dev/null", b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert not os.path.exists("/dev/null.partial")


def test_text(tmp_path):
    with open_atomic(tmp_path / "x.csv", newline="") as file:
        file.write("λ\r\n")
    assert (tmp_path / "x.csv").read_bytes() == "λ\r\n".encode()


class Store(PathHandler):
    """Keeps what was written to its URLs; fails if ``full``."""

    full = False

    def __init__(self):
        super().__init__()
        self.files = {}
        self.folders = []

    def _get_supported_prefixes(self):
        return ["store://"]

    def _mkdirs(self, path, **kwargs):
        self.folders.append(path)

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        file = io.BytesIO()
        close = file.close
        file.close = lambda: (self.files.update({path: file.getvalue()}), close())
        return file


def test_url(tmp_path, monkeypatch):
    """It is written when the content is complete."""
    monkeypatch.chdir(tmp_path)
    store = Store()
    PathManager.register_handler(store, allow_override=True)
    with json_list("store://x.json") as append:
        append({"a": 1})
        assert store.files == {}
    assert json.loads(store.files["store://x.json"]) == [{"a": 1}]
    with pytest.raises(KeyError), json_list("store://x.json") as append:
        append({"b": 1})
        raise KeyError
    assert json.loads(store.files["store://x.json"]) == [{"a": 1}]
    write_json([1], "store://a/x.json")
    assert json.loads(store.files["store://a/x.json"]) == [1]
    assert store.folders[-1] == "store://a/"
    assert not list(tmp_path.iterdir())
    store.full = True
    with pytest.raises(UserError, match="Cannot write store://x.json: No space"):
        write("store://x.json", b"x")
