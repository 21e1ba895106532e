"""The exponential moving average of a model's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["averaged_state", "build_ema"]


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model that averages its parameters, and copies its buffers.

    Its ``update_parameters`` is to be called after each step of the optimizer. The average starts
    from the parameters of the first call; the n-th call after it keeps min(decay, (1 + n) /
    (10 + n)) of it, TensorFlow's rule (``tf.train.ExponentialMovingAverage``), so that what the
    model was in its first iterations is soon forgotten.

    Args:
        model: the model, not yet in DistributedDataParallel or sharded.
        decay: the share of the average that stays, below 1.
    """

    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=average)


def averaged_state(ema_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the state dict of :func:`build_ema`'s model, that of the model it averages."""
    return {
        name.removeprefix("module."): tensor
        for name, tensor in ema_state.items()
        if name != "n_averaged"
    }
