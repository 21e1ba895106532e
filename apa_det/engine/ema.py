"""Exponential moving average of the weights of a model."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a model whose parameters are averages; its buffers are plain copies.

    Call its ``update_parameters`` after each optimizer step. The first call copies the parameters.
    The n-th call after it multiplies the average by min(decay, (1 + n) / (10 + n)), as TensorFlow's
    ``tf.train.ExponentialMovingAverage`` does, so that the first iterations are soon forgotten.

    Args:
        model: the model, not yet in DistributedDataParallel or sharded.
        decay: factor of the old average in an update, in [0, 1).
    """

    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=average)


def averaged_state(ema_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the averaged weights from a state dict of :func:`build_ema`'s model."""
    return {
        name.removeprefix("module."): tensor
        for name, tensor in ema_state.items()
        if name != "n_averaged"
    }
