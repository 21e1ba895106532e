"""One optimizer step, with mixed precision and gradient accumulation."""

import time
from contextlib import nullcontext

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..errors import UserError
from .loading import raise_in_all_processes
from .parallel import in_any_process


class StepTrainer(SimpleTrainer):
    """detectron2's SimpleTrainer and AMPTrainer in one, with gradient accumulation.

    A batch of the loader is one optimizer step. It may go through the model in several parts of
    equal size, whose losses are averaged. The gradients equal those of the whole batch, up to
    rounding, if each loss is a mean over images, or over equally many proposals in each part.
    Statistics of a batch are those of a part: of batch norm, the mean of the mask loss over
    foreground proposals, RetinaNet's running count of foreground anchors. In all this, parts behave
    like the processes of a distributed training.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        num_parts: int = 1,
        precision: torch.dtype | None = None,
        unused_key: str = "find_unused_parameters",
    ):
        """
        Args:
            model: maps a batch to a dict of losses, or to one loss.
            data_loader: yields batches, which are lists of images.
            optimizer: its ``step`` may clip gradients; these are the sums over all parts.
            num_parts: number of consecutive parts to split a batch into.
            precision: dtype of autocast, float16 (with loss scaling) or bfloat16. None: off.
            unused_key: config key of ``find_unused_parameters``, for an error message.
        """
        super().__init__(model, data_loader, optimizer)
        self.num_parts = num_parts
        self.precision = precision
        self._unused_key = unused_key
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=precision is torch.float16
        )

    def run_step(self) -> None:
        assert self.model.training, "The model was changed to eval mode."
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start
        *first, last = _split(data, self.num_parts)
        losses: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for part in first:
            with self._without_reduction():
                self._backward(part, losses)
        self._backward(last, losses)
        _require_gradients(self.model, self._unused_key)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _next_batch(self) -> list[dict]:
        """Return the next batch.

        Raises:
            LoadingError: the loader of a process raises a UserError. The model is unchanged.
        """
        batch = error = None
        try:
            batch = next(self._data_loader_iter)
        except UserError as caught:
            error = caught
        if in_any_process(error is not None, self._device_type):  # faster than gathering errors
            raise_in_all_processes(error)
        return batch

    def _without_reduction(self):
        """Return a context in which DistributedDataParallel does not average gradients yet.

        FSDP averages those of each part: keeping them unsharded would cost the memory it saves.
        """
        ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if ddp else nullcontext()

    def _backward(self, part: list[dict], losses: dict[str, Tensor]) -> None:
        """Add the gradients of a part to the model's, and its share of the losses to ``losses``."""
        enabled = self.precision is not None
        with torch.autocast(self._device_type, dtype=self.precision, enabled=enabled):
            part_losses = self.model(part)
            if isinstance(part_losses, Tensor):
                part_losses = {"total_loss": part_losses}
            total = sum(part_losses.values())
        self.grad_scaler.scale(total / self.num_parts).backward()
        for name, loss in part_losses.items():
            losses[name] = losses.get(name, 0) + loss.detach() / self.num_parts

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty or missing after training in full precision
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _split(data: list[dict], num_parts: int) -> list[list[dict]]:
    if num_parts == 1:
        return [data]
    size, rest = divmod(len(data), num_parts)
    if rest:
        raise UserError(
            f"The batch of a process must split into {num_parts} equal parts, but has {len(data)} "
            "images."
        )
    return [data[start : start + size] for start in range(0, len(data), size)]


def _require_gradients(model: nn.Module, key: str) -> None:
    """Raise a UserError for a missing gradient, which other processes would wait for forever."""
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        return
    parameters = model.module.named_parameters()
    unused = [name for name, p in parameters if p.requires_grad and p.grad is None]
    if unused:
        raise UserError(
            f"{len(unused)} parameters got no gradient in this iteration, e.g. {unused[0]}. If "
            f"this is intended, set {key} to True."
        )
