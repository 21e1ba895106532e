"""One step of the optimizer: in any precision, of all its pictures at once or in parts."""

import time
from contextlib import nullcontext

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

__all__ = ["StepTrainer"]


class StepTrainer(SimpleTrainer):
    """detectron2's SimpleTrainer and AMPTrainer in one, on the CPU too, with gradient accumulation.

    The pictures that the loader gives are those of one step of the optimizer. They may go through
    the model in several parts of the same size, whose losses are averaged. The gradients are then
    those of all pictures at once as far as each loss is a mean over pictures, or over as many
    proposals of each part, in float32's precision. What a model computes for a batch as a whole, it
    computes for each part: the statistics of a batch norm, the mean of the mask loss over
    foreground proposals, RetinaNet's running count of foreground anchors. The parts are to a step
    what the processes of detectron2 are.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        num_parts: int = 1,
        precision: torch.dtype | None = None,
    ):
        """
        Args:
            model: gives a dict of losses, or one loss, for what the loader gives.
            data_loader: gives lists of pictures.
            optimizer: clips gradients, if it does, in its ``step``: so those of all parts together.
            num_parts: the parts that the pictures of a step are split into, in their order.
            precision: the dtype of autocast, float16 (with loss scaling) or bfloat16. None: off.
        """
        super().__init__(model, data_loader, optimizer)
        self.num_parts = num_parts
        self.precision = precision
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=precision is torch.float16
        )

    def run_step(self) -> None:
        assert self.model.training, "The model was changed to eval mode."
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        *first, last = _split(data, self.num_parts)
        losses: dict[str, Tensor] = {}
        self.optimizer.zero_grad()
        for part in first:
            with self._without_reduction():
                self._backward(part, losses)
        self._backward(last, losses)
        _require_gradients(self.model)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _without_reduction(self):
        """Within, gradients of DistributedDataParallel wait for the last part to be averaged.

        FSDP averages those of each part: what it would keep instead takes the memory it saves.
        """
        ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if ddp else nullcontext()

    def _backward(self, part: list[dict], losses: dict[str, Tensor]) -> None:
        """Add the gradients of a part, and its share of the losses."""
        enabled = self.precision is not None
        with torch.autocast(self._device_type, dtype=self.precision, enabled=enabled):
            found = self.model(part)
            if isinstance(found, Tensor):
                found = {"total_loss": found}
            total = sum(found.values())
        self.grad_scaler.scale(total / self.num_parts).backward()
        for name, loss in found.items():
            losses[name] = losses.get(name, 0) + loss.detach() / self.num_parts

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty, or missing, after training in full precision
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _split(data: list[dict], num_parts: int) -> list[list[dict]]:
    if num_parts == 1:
        return [data]
    size, rest = divmod(len(data), num_parts)
    if rest:
        raise ValueError(f"{len(data)} pictures cannot be split into {num_parts} equal parts.")
    return [data[start : start + size] for start in range(0, len(data), size)]


def _require_gradients(model: nn.Module) -> None:
    """Raise an error where other processes would wait forever for this one's gradients."""
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        return
    parameters = model.module.named_parameters()
    unused = [name for name, p in parameters if p.requires_grad and p.grad is None]
    if unused:
        raise ValueError(
            f"In this iteration {len(unused)} parameters got no gradient, such as {unused[0]}. If "
            "that is meant, training in several processes needs SOLVER.FIND_UNUSED_PARAMETERS True "
            "(in a LazyConfig, train.ddp.find_unused_parameters=True)."
        )
