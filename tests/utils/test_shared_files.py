"""Files that processes share: one of them writes, the others map it, and nothing is left."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from apa_det.utils import shared_files
from apa_det.utils.shared_files import new_file, open_shared, read_buffer, share

LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")


def fill(text: bytes = b"content"):
    file = new_file()
    file.write(text)
    return file


@pytest.mark.parametrize("kind", ["memory", "temporary file", "no sharing"])
def test_kinds_of_files(kind, monkeypatch):
    if kind == "temporary file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif kind == "no sharing":
        monkeypatch.setattr(shared_files, "_CAN_SHARE", False)
    before = set(os.listdir(tempfile.gettempdir()))
    file = fill()
    assert bytes(read_buffer(file)[:]) == b"content"
    shared = pickle.loads(pickle.dumps(share(file)))
    assert bytes(read_buffer(open_shared(shared))[:]) == b"content"
    assert not {n for n in set(os.listdir(tempfile.gettempdir())) - before if "apa" in n}


@LINUX
def test_another_file_of_the_same_number():
    file = fill()
    shared = share(file)
    number = file.fileno()
    file.close()
    with fill(b"other") as other:
        assert other.fileno() == number
        with pytest.raises(FileNotFoundError, match="another file now"):
            open_shared(shared)


def _ask(rank: int, folder: str, port: int, askers: list[int], fails: bool) -> None:
    import torch.distributed as dist

    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=3)

    def write():
        (Path(folder) / f"written_by_{rank}").touch()
        if fails:
            raise ValueError("no")
        return fill(f"by {rank}".encode())

    result = "not asked"
    if rank in askers:
        try:
            for _ in range(2):
                file = shared_files.once_per_machine("key", write)
            result = f"{bytes(read_buffer(file)[:]).decode()} {os.fstat(file.fileno()).st_ino}"
        except ValueError as error:
            result = str(error)
    (Path(folder) / f"result_{rank}").write_text(result)
    dist.barrier()
    dist.destroy_process_group()


@LINUX
@pytest.mark.parametrize(
    "askers, fails", [([0, 1, 2], False), ([2], False), ([1, 2], True)], ids=str
)
def test_one_process_writes(askers, fails, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_ask, (str(tmp_path), port, askers, fails), nprocs=3)
    written = list(tmp_path.glob("written_by_*"))
    results = {(tmp_path / f"result_{rank}").read_text() for rank in askers}
    if fails:
        assert len(written) == len(askers) and results == {"no"}
    else:
        assert len(written) == 1 and len(results) == 1  # the same content and inode


KILLED = """
import os, signal, sys
from apa_det.utils.shared_files import new_file, read_buffer
file = new_file()
file.write(bytes(1 << 20))
read_buffer(file)
print("ready", flush=True)
signal.pause()
"""


@LINUX
@pytest.mark.parametrize("hide", ["", "import os; del os.memfd_create"])
def test_a_kill_leaves_nothing(hide, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(hide + KILLED)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        assert not os.listdir(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert not os.listdir(tmp_path)
