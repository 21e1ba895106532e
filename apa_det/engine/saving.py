"""Write checkpoints: complete, finite, and the newest ones only."""

import os
from collections.abc import Mapping

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import Tensor, nn

from ..utils.atomic_files import open_atomic, writing
from .run_folder import LAST, periodic_checkpoints, resume_candidates


class AtomicCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, whose files are complete and finite whenever the process ends.

    A checkpoint is on the disk before ``last_checkpoint`` names it.

    Attributes:
        saved_iteration: the iteration of the newest checkpoint of this process; None: none yet.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **kwargs):
        super().__init__(model, save_dir, **kwargs)
        self.saved_iteration: int | None = None
        self._may_be_infinite = frozenset(nonfinite(self.model.state_dict()))  # e.g. a mask

    def save(self, name: str, **kwargs) -> None:
        """Write a checkpoint.

        Raises:
            FloatingPointError: a weight is NaN or infinite, and was finite at the start.
            UserError: the file cannot be written. The last checkpoint is still there then.
        """
        data = {"model": self.model, **self.checkpointables}
        data = {k: v.state_dict() for k, v in data.items() if k not in kwargs} | kwargs
        if found := self.nonfinite_weights(data):
            raise FloatingPointError(
                f"{name} is not saved, because the training has diverged: its weights are NaN or "
                f"infinite, e.g. {found[0]}. Lower the learning rate, or clip the gradients."
            )
        if self.save_dir and self.save_to_disk:
            file_name = f"{name}.pth"
            self.logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, file_name))
            with open_atomic(os.path.join(self.save_dir, file_name), "wb") as file:
                torch.save(data, file)
            self.tag_last_checkpoint(file_name)
        self.saved_iteration = kwargs.get("iteration")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with open_atomic(os.path.join(self.save_dir, LAST)) as file:
            file.write(last_filename_basename)

    def nonfinite_weights(self, checkpoint: Mapping) -> list[str]:
        """Return the names of the weights of a checkpoint that are NaN or infinite by mistake."""
        found = nonfinite(checkpoint["model"]) | nonfinite(checkpoint.get("ema") or {})
        return sorted(found - self._may_be_infinite)


def nonfinite(state: Mapping[str, object]) -> set[str]:
    """Return the names of the tensors with NaN or infinite values, without ``module.``."""
    floats = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}
    local = {k: v.to_local() if hasattr(v, "to_local") else v for k, v in floats.items()}
    return {k.removeprefix("module.") for k, v in local.items() if not v.isfinite().all()}


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """detectron2's hook, which also counts the checkpoints from before a resume.

    It keeps the newest periodic ones up to the current iteration, and the one that
    ``last_checkpoint`` names. It never deletes ``model_final.pth`` and ``model_best.pth``.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, period: int, kept: int | None = None):
        """
        Args:
            checkpointer: saves the state of the training.
            period: iterations between checkpoints.
            kept: number of periodic checkpoints to keep. None: all.
        """
        super().__init__(checkpointer, period)
        self._kept = kept

    def step(self, iteration: int, **kwargs) -> None:
        super().step(iteration, **kwargs)
        if self._kept is not None and self.checkpointer.saved_iteration == iteration:
            self._delete_old(iteration)

    def _delete_old(self, iteration: int) -> None:
        folder = self.checkpointer.save_dir
        if not comm.is_main_process() or not folder:
            return
        last = resume_candidates(folder)[:1]
        names = [name for i, name in periodic_checkpoints(folder).items() if i <= iteration]
        for name in names[: -self._kept]:
            if name not in last:
                with writing(os.path.join(folder, name)):
                    self.path_manager.rm(os.path.join(folder, name))
