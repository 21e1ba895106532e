"""Norms that detectron2 does not have."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = str | Callable[[int], nn.Module]


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its running statistics; weight and bias are trained.

    detectron2's FrozenBatchNorm2d also freezes weight and bias. Arguments and state dict are those
    of :class:`torch.nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def norm_from_name(norm: Norm) -> Norm:
    """Replace "EvalBN" by its class, for :func:`detectron2.layers.get_norm`."""
    return EvalBatchNorm2d if norm == "EvalBN" else norm


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift, of shape (C,), of a batch norm on running statistics."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
