"""Save a checkpoint and exit on SIGTERM, SIGINT (Ctrl-C) and SIGHUP."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpointer import ShardedCheckpointer
from .saving import AtomicCheckpointer
from .step import StepTrainer

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AGAIN = b"Ctrl-C: stopping after this iteration. Press Ctrl-C again to leave at once.\n"

_parent: int | None = None  # process id of the launcher, see watch_parent


class PreemptionHook(HookBase):
    """On a signal, finishes the iteration, saves a checkpoint, and exits with 128 + the signal.

    All processes stop after the same iteration, even if only one of them gets the signal: they tell
    each other as they exchange the losses. In the last iteration, ``model_final.pth`` is saved, and
    the evaluation is left to ``--resume``. A second Ctrl-C ends the process at once. Signals that
    are ignored (``nohup``) stay so. The end of the launcher counts as SIGTERM (see
    :func:`watch_parent`).

    Place the hook after ``LRScheduler`` and before ``PeriodicCheckpointer``, in every process, and
    evaluate in :meth:`saving_at_once`.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, step: StepTrainer):
        """
        Args:
            checkpointer: the one that ``--resume`` loads from.
            step: the step of the training, which exchanges the signals of the processes.
        """
        self._checkpointer = checkpointer
        self._step = step

    @property
    def _signal(self) -> int:
        """The first signal of this process, else that of another one; 0: none."""
        return self._step.own_signal or self._step.signal

    def before_train(self) -> None:
        self._previous = _set_handlers(self._note)

    def _note(self, number: int, *_) -> None:
        if number == signal.SIGINT:
            # A second one, also while a checkpoint is saved, raises KeyboardInterrupt.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with suppress(OSError):
                os.write(2, _AGAIN)
        self._step.own_signal = self._step.own_signal or number

    def after_step(self) -> None:
        self.trainer.finished_iter = self.trainer.iter
        if _parent not in (None, os.getppid()):
            self._step.own_signal = self._step.own_signal or signal.SIGTERM
        # With several processes, one that has come since the exchange ends the next iteration.
        stops = self._signal if comm.get_world_size() == 1 else self._step.signal
        if stops and not self._is_last_iteration():
            self._save()
            comm.synchronize()
            sys.exit(128 + self._signal)

    @contextmanager
    def saving_at_once(self) -> Iterator[None]:
        """Return a context in which a signal saves a checkpoint and exits at once.

        For evaluation, which takes longer than schedulers wait. A sharded model must be saved
        before, because that takes all processes.
        """
        previous = _set_handlers(self._end)
        try:
            if self._signal:
                self._end(self._signal)
            yield
        finally:
            _restore_handlers(previous)

    def _end(self, number: int, *_) -> None:
        # More signals may come: SIGTERM if other processes end first, SIGCHLD if data workers end.
        if signal.SIGINT in _set_handlers(signal.SIG_IGN):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._step.own_signal = self._signal or number
        sharded = isinstance(self._checkpointer, ShardedCheckpointer)
        if not (sharded or self._is_last_iteration()):
            self._save()
        sys.exit(128 + self._signal)

    def _save(self) -> None:
        iteration, name = self.trainer.iter, signal.Signals(self._signal).name
        if self._checkpointer.saved_iteration == iteration:
            logger.warning("%s: the checkpoint is saved already. Continue with --resume.", name)
            return
        logger.warning("%s: saving a checkpoint. Continue with --resume.", name)
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def _is_last_iteration(self) -> bool:
        return self.trainer.iter + 1 >= self.trainer.max_iter

    def after_train(self) -> None:
        _restore_handlers(self._previous)
        if self._signal and self.trainer.iter >= self.trainer.max_iter:
            logger.warning(
                "%s: %s is saved. Evaluate with --resume.",
                *(signal.Signals(self._signal).name, "model_final.pth"),
            )
            sys.exit(128 + self._signal)


def watch_parent() -> None:
    """Let a training in this process stop, as on SIGTERM, when its parent process has ended.

    For processes of a launcher, which should not train on without it.
    """
    global _parent
    parent = multiprocessing.parent_process()
    _parent = os.getppid() if parent is None else parent.pid


def _set_handlers(handler: Callable | signal.Handlers) -> dict[int, object]:
    """Set the handler of all signals that are not ignored; return the previous ones.

    Only possible in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    previous = {n: old for n, old in previous.items() if old is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, handler)
    return previous


def _restore_handlers(previous: Mapping[int, object]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler or signal.SIG_DFL)


def _shield_child() -> None:
    """Keep the signals of a training from a data worker that it has just forked.

    The worker is still needed to finish the iteration. Ctrl-C and the SIGTERM of torchrun go to
    whole process groups.
    """
    owners = (getattr(signal.getsignal(number), "__self__", None) for number in SIGNALS)
    if any(isinstance(owner, PreemptionHook) for owner in owners):
        _set_handlers(signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with suppress(OSError):
            os.setpgid(0, 0)


os.register_at_fork(after_in_child=_shield_child)
