"""The state of a model that a step changes beside its weights, e.g. statistics of batch norm."""

from collections.abc import Mapping

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn


class BufferSnapshot:
    """A copy of all buffers and loss normalizers of a model.

    Taking it does not wait for the GPU.

    Attributes:
        detectors: see :func:`dense_detectors`.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self.detectors = dense_detectors(model)
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._copies: list[Tensor] = []
        self._normalizers: dict[str, float] = {}

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
        self._normalizers = loss_normalizers(self.detectors)

    def forget(self) -> None:
        """Let :meth:`restore` do nothing until the next copy."""
        self._buffers = []
        self._normalizers = {}

    @torch.no_grad()
    def restore(self) -> None:
        """Set the buffers to their values in the copy, also those that were replaced since."""
        for (module, name, buffer), copy in zip(self._buffers, self._copies, strict=False):
            buffer.copy_(copy)
            module._buffers[name] = buffer
        set_loss_normalizers(self.detectors, self._normalizers)


def dense_detectors(model: nn.Module) -> dict[str, DenseDetector]:
    """Return the modules that may have a loss normalizer, by name without that of DDP."""
    modules = getattr(model, "module", model).named_modules()
    return {name: module for name, module in modules if isinstance(module, DenseDetector)}


def loss_normalizers(detectors: Mapping[str, DenseDetector]) -> dict[str, float]:
    """Return the running mean of the foreground anchors of RetinaNet and FCOS, by module."""
    return {n: m.loss_normalizer for n, m in detectors.items() if hasattr(m, "loss_normalizer")}


def set_loss_normalizers(
    detectors: Mapping[str, DenseDetector], values: Mapping[str, float]
) -> None:
    """Set what :func:`loss_normalizers` returns."""
    for name, value in values.items():
        detectors[name].loss_normalizer = value


def _layout(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.device
