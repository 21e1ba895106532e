"""Progress: lines in a log, a bar in a terminal, nothing for short operations."""

import io
import logging
import re
import sys
import time

import pytest

from apa_det.utils import progress
from apa_det.utils.progress import Progress, heartbeat, track


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "apa_det.utils.progress")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def clock(monkeypatch):
    """Replace the time by seconds that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_of_a_log(lines, clock):
    """After 10 seconds and every 10 seconds, with the time that is left at the same speed."""
    for item in track(range(50), "Checking", "images"):
        assert lines() == [] if item < 10 else lines()
        clock[0] += 1.0
    assert lines() == [
        "Checking: 10 of 50 images, 10 s so far, about 40 s left",
        "Checking: 20 of 50 images, 20 s so far, about 30 s left",
        "Checking: 30 of 50 images, 30 s so far, about 20 s left",
        "Checking: 40 of 50 images, 40 s so far, about 10 s left",
        "Checking: 50 of 50 images, 50 s so far, about 0 s left",
        "Checking: took 50 s",
    ]


def test_long_operations_log_less(lines, clock):
    with Progress("Training", 24 * 3600, "iterations") as shown:
        for _ in range(24 * 360):
            clock[0] += 10
            shown.update(10)
    assert 150 < len(lines()) < 250
    assert lines()[-2].startswith("Training: 86,") and "23 h 5" in lines()[-2]


def test_bytes_and_unknown_totals(lines, clock):
    with Progress("Reading a.json", 80_000_000, "B", done=20_000_000) as shown:
        clock[0] += 15
        shown.update(30_000_000)
    with Progress("Detecting", None, "frames") as shown:
        clock[0] += 61
        shown.update(3)
    assert lines()[0] == "Reading a.json: 50 of 80 MB, 15 s so far, about 15 s left"
    assert lines()[2] == "Detecting: 3 frames, 1 min 01 s so far"


def test_only_the_main_process_reports(lines, clock, monkeypatch):
    monkeypatch.setattr(progress.comm, "is_main_process", lambda: False)
    for _ in track(range(5), "Checking"):
        clock[0] += 60
    assert lines() == []


def test_bar_of_a_terminal(lines, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert [*track(range(3), "Checking", "images")] == [0, 1, 2]
    assert terminal.getvalue().strip() == ""  # too short
    monkeypatch.setattr(progress, "_DELAY", 0)
    assert [*track(range(3), "Checking", "images")] == [0, 1, 2]
    assert "Checking:" in terminal.getvalue() and "/3" in terminal.getvalue()
    assert lines() == []


def test_heartbeat(lines, monkeypatch):
    """It is silent while an operation within it reports."""
    monkeypatch.setattr(progress, "_PERIOD", 0.02)
    with heartbeat("Evaluating"):
        time.sleep(0.2)
        outside = len(lines())
        with heartbeat("Reading"):
            time.sleep(0.2)
    assert outside and all(re.fullmatch("Evaluating: 0 s so far", x) for x in lines()[:outside])
    assert "Reading: 0 s so far" in lines()[outside:]
    number = len(lines())
    time.sleep(0.1)
    assert len(lines()) == number and not progress._active
