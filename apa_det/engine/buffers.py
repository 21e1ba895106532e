"""Keep the buffers of a model, e.g. statistics of batch norm, to undo a step."""

import torch
from torch import Tensor, nn


class BufferSnapshot:
    """A copy of all buffers of a model. Taking it does not wait for the GPU."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        """Copy the buffers."""
        modules = list(self._model.modules())
        buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
        tensors = [b for _, _, b in buffers]
        if [_layout(t) for t in tensors] != [_layout(c) for c in self._copies]:
            self._copies = [torch.empty_like(t) for t in tensors]
        if tensors:
            torch._foreach_copy_(self._copies, tensors)
        self._buffers = buffers

    def forget(self) -> None:
        """Let :meth:`restore` do nothing until the next copy."""
        self._buffers = []

    @torch.no_grad()
    def restore(self) -> None:
        """Set the buffers to their values in the copy, also those that were replaced since."""
        for (module, name, buffer), copy in zip(self._buffers, self._copies, strict=False):
            buffer.copy_(copy)
            module._buffers[name] = buffer


def _layout(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.device
