"""One optimizer step, with mixed precision and gradient accumulation."""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..errors import UserError
from .buffers import BufferSnapshot, loss_normalizers, set_loss_normalizers
from .loading import raise_in_all_processes
from .parallel import largest
from .replay_memories import ReplayMemories

logger = logging.getLogger(__name__)

_MAX_OVERFLOWS = 50  # steps in a row that loss scaling skips: it has halved the scale each time


class _Report(NamedTuple):
    """What a process tells the others in each step."""

    losses: dict[str, float]
    data_time: float  # seconds
    has_finite_gradients: bool
    normalizers: dict[str, float]  # see loss_normalizers
    signal: int


class StepTrainer(SimpleTrainer):
    """detectron2's SimpleTrainer and AMPTrainer in one, with gradient accumulation.

    A batch of the loader is one optimizer step. It may go through the model in several parts of
    equal size, whose losses are averaged. The gradients equal those of the whole batch, up to
    rounding, if each loss is a mean over images, or over equally many proposals in each part.
    Statistics of a batch are those of a part: of batch norm, the mean of the mask loss over
    foreground proposals, RetinaNet's running count of foreground anchors. In all this, parts behave
    like the processes of a distributed training.

    A step with a NaN or infinite loss or gradient changes nothing: neither weights nor buffers. It
    is skipped, or raises a FloatingPointError, in all processes. With loss scaling (float16),
    infinite gradients alone are left to it, and are an error only in many steps in a row. Gradients
    are unscaled after the backward pass, so hooks and clipping see their true values.

    The host waits for the device once in a step: for the losses and whether the gradients are
    finite. Processes exchange an error of their loaders before the forward pass, and everything
    else together with the losses.

    Attributes:
        has_updated: whether the step has begun to change the weights.
        buffers: those of the model before the step.
        own_signal: the first signal that this process got; 0: none. Set by ``PreemptionHook``.
        signal: the largest ``own_signal`` of all processes, as of the last exchange of losses.
        on_batch: called with each batch before the forward pass; it must not change the batch.
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
        skip_nonfinite: int = 0,
        skip_key: str = "skip_nonfinite",
    ):
        """
        Args:
            model: maps a batch to a dict of losses, or to one loss.
            data_loader: yields batches, which are lists of images.
            optimizer: its ``step`` may clip gradients; these are the sums over all parts.
            num_parts: number of consecutive parts to split a batch into.
            precision: dtype of autocast, float16 (with loss scaling) or bfloat16. None: off.
            unused_key: config key of ``find_unused_parameters``, for an error message.
            skip_nonfinite: number of steps in a row to skip for NaN or infinite values.
            skip_key: its config key, for an error message.
        """
        super().__init__(model, data_loader, optimizer)
        self.num_parts = num_parts
        self.precision = precision
        self._unused_key = unused_key
        self._skip_nonfinite = skip_nonfinite
        self._skip_key = skip_key
        self._num_skipped = 0  # in a row
        self._num_overflows = 0  # in a row
        self._normalizers: list[dict[str, float]] = []  # loss normalizers of each process
        self.has_updated = False
        self.own_signal = self.signal = 0
        self.on_batch: Callable[[Sequence[dict]], None] | None = None
        self.buffers = BufferSnapshot(model)
        self._replay_memories = ReplayMemories(model)
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=precision is torch.float16
        )

    def run_step(self) -> None:
        assert self.model.training, "The model was changed to eval mode."
        self.has_updated = False
        self.buffers.take()
        self._replay_memories.forget_recorded()
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start
        if self.on_batch is not None:
            self.on_batch(data)
        *first, last = _split(data, self.num_parts)
        losses: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for part in first:
            with self._without_reduction():
                self._backward(part, losses)
        self._backward(last, losses)
        _require_gradients(self.model, self._unused_key)
        self.grad_scaler.unscale_(self.optimizer)  # else a fused step would do it after clipping
        self.after_backward()
        if self._is_bad(losses, data_time):
            return
        self.has_updated = True
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._replay_memories.commit()

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
        if largest(error is not None):  # faster than gathering errors
            raise_in_all_processes(error)
        return batch

    def stop_loading(self) -> None:
        """End the data workers; the next step starts others."""
        batches, self._data_loader_iter_obj = self._data_loader_iter_obj, None
        if isinstance(batches, Generator):
            batches.close()

    def forget_last_step(self) -> None:
        """Forget the state before the last step, as an iteration begins."""
        self.has_updated = False
        self.buffers.forget()

    def _is_bad(self, losses: dict[str, Tensor], data_time: float) -> bool:
        """Write the losses; return whether to skip the step, the same in all processes.

        Raises:
            FloatingPointError: too many steps in a row are bad.
        """
        what, metrics = self._write_losses(losses, data_time)
        has_overflow = what == "Gradients" and self.grad_scaler.is_enabled()
        self._num_overflows = self._num_overflows + 1 if has_overflow else 0
        self._num_skipped = self._num_skipped + 1 if what and not has_overflow else 0
        message = f"{what} became infinite or NaN at iteration={self.iter}"
        values = f"loss_dict = {metrics}"
        if self._num_overflows > _MAX_OVERFLOWS:
            raise FloatingPointError(
                f"{message} and in the {_MAX_OVERFLOWS} before, at ever smaller loss scales!\n"
                + values
            )
        if not self._num_skipped:
            return False
        self.buffers.restore()
        if self.grad_scaler.is_enabled():  # the gradients are unscaled, but make no step
            self.grad_scaler.update(self.grad_scaler.get_scale())
        if self._num_skipped > self._skip_nonfinite:
            example = self._example() if what == "Gradients" else ""
            raise FloatingPointError(
                f"{message}{example}!\n{values}\nLower the learning rate, clip the gradients, or "
                f"set {self._skip_key} to skip a few such iterations in a row."
            )
        if comm.is_main_process():
            logger.warning(
                "%s: the iteration is skipped, number %d in a row of at most %d.\n%s",
                *(message, self._num_skipped, self._skip_nonfinite, values),
            )
        return True

    def _write_losses(self, losses: dict[str, Tensor], data_time: float) -> tuple[str, dict]:
        """Write the losses as SimpleTrainer does, unless they are NaN or infinite.

        Returns:
            What is NaN or infinite in any process ("Loss", "Gradients" or ""), and the losses,
            averaged over the processes.
        """
        finite = _are_finite([p.grad for p in self.model.parameters() if p.grad is not None])
        *numbers, finite = _to_host([*losses.values(), finite])
        metrics = dict(zip(losses, numbers, strict=True))
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=self.iter)
        normalizers = loss_normalizers(self.buffers.detectors)
        own = _Report(metrics, data_time, bool(finite), normalizers, self.own_signal)
        reports: list[_Report] = comm.all_gather(own)
        metrics = {name: np.mean([x.losses[name] for x in reports]) for name in metrics}
        self._normalizers = [x.normalizers for x in reports]
        self.signal = max(x.signal for x in reports)
        total = sum(metrics.values())
        is_main, has_losses = comm.is_main_process(), np.isfinite(total)
        if is_main:
            data_time = np.max([x.data_time for x in reports])
            storage.put_scalar("data_time", data_time, cur_iter=self.iter)
        if is_main and has_losses:
            storage.put_scalar("total_loss", total, cur_iter=self.iter)
            if len(metrics) > 1:
                storage.put_scalars(cur_iter=self.iter, **metrics)
        if not has_losses:
            return "Loss", metrics
        return "" if all(x.has_finite_gradients for x in reports) else "Gradients", metrics

    def _example(self) -> str:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not _are_finite([parameter.grad]):
                return f", e.g. that of {name}"
        return ""

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
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "num_skipped": self._num_skipped,
            "num_overflows": self._num_overflows,
            "loss_normalizers": self._normalizers,
            "replay_memories": self._replay_memories.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._num_skipped = state_dict.get("num_skipped", 0)
        self._num_overflows = state_dict.get("num_overflows", 0)
        self._normalizers = state_dict.get("loss_normalizers", [])
        if len(self._normalizers) == comm.get_world_size():
            set_loss_normalizers(self.buffers.detectors, self._normalizers[comm.get_rank()])
        self._replay_memories.load_state_dict(state_dict.get("replay_memories", []))
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


def _are_finite(gradients: list[Tensor]) -> Tensor:
    """Return whether all values are finite, a bool on their device, without waiting for it.

    Of sharded gradients, those of this process.
    """
    local = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
    local = [g for g in local if g.numel()]
    if not local:
        return torch.tensor(True)
    largest = torch._foreach_norm(local, torch.inf)  # the magnitude; NaN if a value is
    if len({(x.dtype, x.device) for x in largest}) > 1:
        largest = [x.to(local[0].device, torch.float64) for x in largest]
    return torch.stack(largest).isfinite().all()


def _to_host(scalars: list[Tensor]) -> list[float]:
    """Return the values of tensors of one element, with a single wait for their device."""
    device = scalars[0].device
    return torch.stack([x.detach().reshape(()).to(device) for x in scalars]).tolist()


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
