"""Stop a training whose metric no longer improves."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from .hooks import BestCheckpointer
from .saving import AtomicCheckpointer

logger = logging.getLogger(__name__)


class EarlyStopping(HookBase):
    """Ends the training after several evaluations in a row without a new best model.

    It saves ``model_final.pth`` and makes this iteration the last one. The count follows from the
    iteration of the best model, so it survives a resume. Place the hook after ``EvalHook`` and
    ``BestCheckpointer``, in every process.
    """

    def __init__(
        self,
        patience: int,
        eval_period: int,
        checkpointer: AtomicCheckpointer,
        best: BestCheckpointer | None,
        key: str = "patience",
    ):
        """
        Args:
            patience: number of evaluations.
            eval_period: iterations between evaluations, as for ``EvalHook``.
            checkpointer: the one that ``--resume`` loads from.
            best: the hook that finds the best model; None except in the main process.
            key: config key of the patience, for a warning if the metric has no value.
        """
        self._patience, self._period = patience, eval_period
        self._checkpointer, self._best = checkpointer, best
        self._key, self._has_warned = key, False

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done >= self.trainer.max_iter:
            return
        if not comm.all_gather(self._without_improvement(done) >= self._patience)[0]:
            return
        if comm.is_main_process():
            logger.info(
                "Early stopping after %d of %d iterations: no better %s in %d evaluations since "
                "iteration %d. The best model is in model_best.pth.",
                *(done, self.trainer.max_iter, self._best.metric, self._patience),
                self._best.best_iter,
            )
        self.trainer.max_iter = done
        iteration = self.trainer.iter
        self._checkpointer.save("model_final", iteration=iteration, stopped_early=self._patience)

    def _without_improvement(self, done: int) -> int:
        """Return the number of evaluations since the best one, in the main process."""
        if self._best is None:
            return 0
        if self._best.best_iter is None:
            if not self._has_warned:
                self._has_warned = True
                text = "%s has no effect: %s has no value yet, so no evaluation is worse or better."
                logger.warning(text, self._key, self._best.metric)
            return 0
        return done // self._period - (self._best.best_iter + 1) // self._period
