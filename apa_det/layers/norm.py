"""Norms that detectron2 lacks."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EvalBatchNorm2d", "norm_from_name"]


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that runs on its stored statistics in training too; weight and bias are trained.

    detectron2's FrozenBatchNorm2d holds weight and bias fixed as well. Arguments and state dict are
    those of :class:`torch.nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def norm_from_name(
    norm: str | Callable[[int], nn.Module],
) -> str | Callable[[int], nn.Module]:
    """What :func:`detectron2.layers.get_norm` takes, for what it takes or "EvalBN"."""
    return EvalBatchNorm2d if norm == "EvalBN" else norm
