"""A short run of the fuzzer over all readers, and what the fuzzer notices."""

import logging
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from apa_det.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts/fuzz_files.py"


@pytest.fixture(scope="module")
def fuzzer():
    module = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    sys.addaudithook(module.watch)
    previous = signal.signal(signal.SIGALRM, module.stop)
    logging.disable()
    yield module
    logging.disable(logging.NOTSET)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, count", [("checkpoints", 1000), ("predictions", 1000), ("yaml", 400)]
)
def test_every_file_is_read_or_refused(kind, count, fuzzer, tmp_path):
    outcomes, faults = fuzzer.fuzz(kind, count, 0, tmp_path)
    assert not faults, faults[0].with_suffix(".txt").read_text()
    assert outcomes["read"] > 10 and outcomes["UserError"] > 100
    assert not list(tmp_path.iterdir())


def connect():
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", 9))


def fail(error):
    raise error


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda: fail(KeyError("a")), "KeyError: 'a'"),
        (lambda: fail(UserError("a\nb")), "UserError: a"),
        (lambda: fail(UserError("\x1b[31m")), "UserError"),
        (lambda: os.system("true"), "Forbidden: os.system"),
        (connect, "Forbidden: socket.connect"),
        (lambda: time.sleep(30), "TimeOut: more than 10 s"),
        (lambda: None, None),
        (lambda: fail(UserError("X must be 1.")), None),
    ],
)
def test_faults(function, reason, fuzzer, tmp_path, monkeypatch):
    kind = fuzzer.Kind(".x", lambda: [b"seed"], lambda d, rng: d, lambda _: function())
    monkeypatch.setitem(fuzzer.KINDS, "yaml", kind)
    monkeypatch.setitem(fuzzer.outcome.__globals__, "SECONDS", 0.2)
    reason = reason and reason.replace("10 s", "0.2 s")
    outcomes, faults = fuzzer.fuzz("yaml", 2, 5, tmp_path)
    assert len(faults) == outcomes["fault"] == (2 if reason else 0)
    for i, path in enumerate(faults):
        assert path == tmp_path / f"yaml-5-{i}.x" and path.read_bytes() == b"seed"
        assert reason in path.with_suffix(".txt").read_text()
