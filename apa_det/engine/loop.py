"""The training loop, which loses no finished iteration to an error."""

import errno
import logging

from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ..errors import UserError
from .checkpointer import ShardedCheckpointer
from .loading import LoadingError
from .saving import AtomicCheckpointer
from .step import StepTrainer

logger = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class TrainingLoop(TrainerBase):
    """detectron2's loop, whose end hooks may bring forward by lowering ``max_iter``.

    After an error, it saves the last finished iteration. After a divergence (FloatingPointError)
    it does not: the same would happen again.

    Attributes:
        finished_iter: the last iteration whose step is done; set by ``PreemptionHook``.
        checkpointer: saves the state of the training.
    """

    checkpointer: AtomicCheckpointer
    finished_iter: int
    _trainer: StepTrainer

    def run_loop(self, start_iter: int, max_iter: int) -> None:
        """Run the hooks, and the iterations ``start_iter`` to ``max_iter - 1``.

        Raises:
            UserError: the disk is full, or as the steps and hooks do.
        """
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.finished_iter = start_iter - 1
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                self.make_up()
                while self.iter < self.max_iter:
                    self._trainer.forget_last_step()
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except BaseException as error:
                if isinstance(error, Exception) and not isinstance(error, FloatingPointError):
                    self._save_finished(together=isinstance(error, LoadingError))
                self._end_hooks()
                if isinstance(error, OSError) and error.errno in _NO_SPACE:
                    raise UserError(
                        f"Cannot write into {self.checkpointer.save_dir}: {error.strerror}. Make "
                        "room for it, and continue with --resume."
                    ) from error
                raise
            finally:
                self._trainer.stop_loading()
            self.after_train()

    def make_up(self) -> None:
        """Do what a stop has cut off after the last iteration before a resume."""

    def undo_step(self) -> None:
        """Restore what a step has changed that failed before it updated the weights."""
        self._trainer.buffers.restore()

    def _end_hooks(self) -> None:
        """Run the hooks after a failure; they evaluate only at the end of the training."""
        self.iter = min(self.iter, self.max_iter - 2)
        try:
            self.after_train()
        except Exception as error:  # e.g. the disk is full: not the error to report
            logger.warning("%s", error)

    def _save_finished(self, *, together: bool) -> None:
        """Save the last finished iteration, if it is not saved and this process can do so.

        Args:
            together: all processes call this, and wait for the main one.
        """
        done, failed = self.finished_iter, self.iter
        step = self._trainer
        sharded = isinstance(self.checkpointer, ShardedCheckpointer)
        if not together and (sharded or not self.checkpointer.save_to_disk):
            return
        if done < self.start_iter or self.checkpointer.saved_iteration == done:
            return
        if failed > done and step.has_updated:
            return  # the weights may be half of the failed iteration
        if failed > done:
            self.undo_step()
        self.iter = done
        try:
            self.checkpointer.save(f"model_{done:07d}", iteration=done)
            logger.warning(
                "Stopped by an error in iteration %d. Iteration %d is saved: continue with "
                "--resume.",
                *(failed, done),
            )
        except (UserError, FloatingPointError) as error:
            logger.warning("%s", error)
        finally:
            self.iter = failed
            if together:
                comm.synchronize()
