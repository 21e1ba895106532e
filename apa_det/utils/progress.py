"""Progress of long operations: a bar in a terminal, lines in a log elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from detectron2.utils import comm
from tqdm import tqdm

T = TypeVar("T")

logger = logging.getLogger(__name__)

_DELAY = 3.0  # seconds; shorter operations show nothing
_PERIOD = 10.0  # seconds between two lines of a log
_MAX_PERIOD = 600.0  # seconds
_BYTES = "B"
_active: list[object] = []  # what runs, from the outermost on; only the innermost reports


class Progress:
    """Shows how much of an operation is done, in the main process.

    If stderr is a terminal, it shows a bar after 3 seconds, which it removes at the end. Otherwise
    it logs a line every 10 seconds, and after minutes in growing intervals of at most 10
    minutes. Use it as a context manager.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "", done: int = 0):
        """
        Args:
            what: the operation, e.g. "Checking images".
            total: the number of steps. None: unknown.
            unit: a step, in the plural, e.g. "images"; "B" for bytes.
            done: the number of steps that were done before.
        """
        self._what, self._total, self._unit = what, total, unit
        self._first = self.done = done
        self._start = self._logged = time.monotonic()
        self._is_main, self._bar = comm.is_main_process(), None
        if self._is_main and sys.stderr.isatty():
            unit = {"unit": unit if unit == _BYTES else f" {unit}", "unit_scale": unit == _BYTES}
            self._bar = tqdm(
                desc=what, total=total, initial=done, delay=_DELAY, leave=False, **unit
            )

    def __enter__(self) -> "Progress":
        _active.append(self)
        return self

    def __exit__(self, *_) -> None:
        _active.remove(self)
        if self._bar is not None:
            self._bar.close()
        elif self._logged > self._start:
            logger.info("%s: took %s", self._what, _duration(time.monotonic() - self._start))

    def update(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(steps)
        elif self._is_main:
            now = time.monotonic()
            growing = min((self._logged - self._start) / 10, _MAX_PERIOD)
            if now - self._logged >= max(_PERIOD, growing):
                self._logged = now
                logger.info("%s: %s", self._what, self._describe(now - self._start))

    def rename(self, what: str) -> None:
        """Replace the name of the operation."""
        self._what = what
        if self._bar is not None:
            self._bar.set_description(what, refresh=False)

    def _describe(self, seconds: float) -> str:
        scale, unit = (1e6, "MB") if self._unit == _BYTES else (1, self._unit)
        text = f"{self.done / scale:,.0f}"
        left = ""
        if self._total:
            text += f" of {self._total / scale:,.0f}"
            new = self.done - self._first
            if new:
                left = f", about {_duration(seconds / new * (self._total - self.done))} left"
        return f"{text} {unit}".rstrip() + f", {_duration(seconds)} so far{left}"


def track(items: Iterable[T], what: str, unit: str = "", total: int | None = None) -> Iterator[T]:
    """Iterate, with the :class:`Progress` of the items that were used.

    Args:
        items: the items.
        what, unit: see :class:`Progress`.
        total: the number of items. None: their length, if they have one.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def heartbeat(what: str) -> Iterator[None]:
    """Log every 10 seconds, in the main process, that an operation without steps still runs.

    It is silent while another one, or a :class:`Progress`, runs within it.
    """
    done, start = threading.Event(), time.monotonic()

    def report() -> None:
        while not done.wait(_PERIOD):
            if _active[-1:] == [done]:
                logger.info("%s: %s so far", what, _duration(time.monotonic() - start))

    thread = threading.Thread(target=report, daemon=True)
    _active.append(done)
    if comm.is_main_process():
        thread.start()
    try:
        yield
    finally:
        _active.remove(done)
        done.set()
        if thread.is_alive():
            thread.join()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
