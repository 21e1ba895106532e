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
    return _Average(model, decay)


class _Average(AveragedModel):
    """torch's class, which keeps the count of updates on the CPU, but copies it to the GPU."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        n = int(self.n_averaged)
        averaged, current = [*self.module.parameters()], [*model.parameters()]
        if n == 0:
            _copy(averaged, current)
        else:
            factor = min(self._decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(averaged, current, 1 - factor)
        _copy([*self.module.buffers()], [*model.buffers()])
        self.n_averaged += 1


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def averaged_state(ema_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the averaged weights from a state dict of :func:`build_ema`'s model."""
    return {
        name.removeprefix("module."): tensor
        for name, tensor in ema_state.items()
        if name != "n_averaged"
    }
