"""Save a checkpoint and exit on SIGTERM, which schedulers send before they end a job."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpointer import ShardedCheckpointer
from .parallel import in_any_process

logger = logging.getLogger(__name__)


class PreemptionHook(HookBase):
    """On SIGTERM, finishes the iteration, saves a checkpoint, and exits with status 143.

    All processes stop after the same iteration, even if only one of them gets the signal. A signal
    in the last iteration changes nothing: training ends as usual. Place the hook after
    ``LRScheduler`` and before ``PeriodicCheckpointer``, in every process, and evaluate in
    :meth:`saving_at_once`.
    """

    def __init__(self, checkpointer: Checkpointer, device: torch.device):
        """
        Args:
            checkpointer: the one that ``--resume`` loads from.
            device: device for reductions over the processes.
        """
        self._checkpointer = checkpointer
        self._device = device
        self._signalled = False

    def before_train(self) -> None:
        self._pid = os.getpid()
        self._previous = _set_handler(self._note)

    def _note(self, *_) -> None:
        self._signalled = True

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            _shield_data_workers()
        if self._is_last_iteration() or not in_any_process(self._signalled, self._device):
            return
        self._save()
        comm.synchronize()
        sys.exit(128 + signal.SIGTERM)

    @contextmanager
    def saving_at_once(self) -> Iterator[None]:
        """Return a context in which SIGTERM saves a checkpoint and exits at once.

        For evaluation, which takes longer than schedulers wait. A sharded model is not saved,
        because that takes all processes.
        """
        previous = _set_handler(self._end)
        try:
            if self._signalled and not self._is_last_iteration():
                self._end()
            yield
        finally:
            _set_handler(previous)

    def _end(self, *_) -> None:
        # More signals may come: SIGTERM if other processes end first, SIGCHLD if data workers end.
        _set_handler(signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sharded = isinstance(self._checkpointer, ShardedCheckpointer)
        is_child = os.getpid() != self._pid  # a data worker, which inherited this handler
        if not (sharded or is_child or self._is_last_iteration()):
            self._save()
        sys.exit(128 + signal.SIGTERM)

    def _save(self) -> None:
        iteration = self.trainer.iter
        logger.warning("SIGTERM: saving a checkpoint. Continue with --resume.")
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def _is_last_iteration(self) -> bool:
        return self.trainer.iter + 1 >= self.trainer.max_iter

    def after_train(self) -> None:
        _set_handler(self._previous)


def _shield_data_workers() -> None:
    """Move each data worker to its own process group.

    torchrun sends SIGTERM to the process group of each training process, which still needs data to
    finish its iteration.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            with suppress(OSError):  # it has ended, or was spawned
                os.setpgid(process.pid, process.pid)


def _set_handler(handler):
    """Set the handler of SIGTERM and return the previous one; only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
