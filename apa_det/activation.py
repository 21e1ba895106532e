"""The Adaptive Parametric Activation (APA) and the Adaptive Generalized Linear Unit (AGLU).

Alexandridis, Deng, Nguyen and Luo, "Adaptive Parametric Activation", ECCV 2024 (arXiv 2407.08567):

    η(z; λ, κ) = (λ e^(−κz) + 1)^(−1/λ)        APA, λ > 0
    AGLU(z) = z · η(z; λ, κ)

λ = κ = 1 is the sigmoid (AGLU: SiLU), λ → 0 the Gumbel distribution function e^(−e^(−κz)), and AGLU
tends to ReLU as κ → ∞.

Every function is exact in value and gradient for z, λ and κ, keeps nothing but its inputs for the
backward pass, computes half types in float32, and is finite wherever the true value is. ``lambda_``
and ``kappa`` are numbers, or tensors that broadcast with ``z``; λ = 0 is the Gumbel limit.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .kernels import eager

__all__ = ["APA", "AGLU", "aglu", "apa", "log_apa", "logit_apa"]


def apa(z: Tensor, lambda_: Tensor | float, kappa: Tensor | float) -> Tensor:
    """APA, η(z; λ, κ) = (λ e^(−κz) + 1)^(−1/λ), elementwise.

    Args:
        z: a floating-point tensor of any shape.
        lambda_: λ ≥ 0, a number or a tensor that broadcasts with ``z``. A negative λ in a tensor
            gives NaN.
        kappa: κ, a number or a tensor that broadcasts with ``z``.

    Returns:
        A tensor of the dtype of ``z`` and the broadcast shape, in [0, 1].

    Raises:
        TypeError: ``z`` is not a floating-point tensor.
        ValueError: ``lambda_`` is a negative number.
    """
    return _evaluate("apa", z, lambda_, kappa)


def log_apa(z: Tensor, lambda_: Tensor | float, kappa: Tensor | float) -> Tensor:
    """log η(z; λ, κ), precise where η rounds to 0 or 1; otherwise as :func:`apa`."""
    return _evaluate("log_apa", z, lambda_, kappa)


def logit_apa(z: Tensor, lambda_: Tensor | float, kappa: Tensor | float) -> Tensor:
    """The log-odds of η, log η(z; λ, κ) − log(1 − η(z; λ, κ)); otherwise as :func:`apa`.

    η = sigmoid(logit_apa(z)): ``binary_cross_entropy_with_logits`` of these log-odds is the binary
    cross-entropy of η, without overflow for any z.
    """
    return _evaluate("logit_apa", z, lambda_, kappa)


def aglu(z: Tensor, lambda_: Tensor | float, kappa: Tensor | float) -> Tensor:
    """AGLU, z · η(z; λ, κ), elementwise; arguments and errors as for :func:`apa`."""
    return _evaluate("aglu", z, lambda_, kappa)


def _evaluate(
    form: eager.Form, z: Tensor, lambda_: Tensor | float, kappa: Tensor | float
) -> Tensor:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{form} takes a floating-point tensor z, not {kind}.")
    if not isinstance(lambda_, Tensor) and lambda_ < 0:
        raise ValueError(f"{form} takes lambda_ >= 0, not {lambda_}.")
    dtypes = [t.dtype for t in (z, lambda_, kappa) if isinstance(t, Tensor)]
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    lambda_, kappa = (_as_tensor(value, dtype, z.device) for value in (lambda_, kappa))
    shape = torch.broadcast_shapes(z.shape, lambda_.shape, kappa.shape)
    return _APAFunction.apply(form, z.expand(shape), lambda_, kappa)


def _as_tensor(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)


class _APAFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, form, z, lambda_, kappa):
        ctx.form = form
        ctx.save_for_backward(z, lambda_, kappa)
        return eager.forward(form, z, _above_floor(lambda_), kappa)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        z, lambda_, kappa = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        return None, *eager.backward(ctx.form, grad, z, _above_floor(lambda_), kappa, needs)


def _above_floor(lambda_: Tensor) -> Tensor:
    floored = lambda_.clamp(min=eager.LAMBDA_FLOOR)
    return torch.where(lambda_ < 0, torch.nan, floored)


class APA(nn.Module):
    """APA with learned λ and κ, used as a gate.

    Args:
        num_channels: None for one λ and one κ, of shape (1,); or the number of channels, for one
            pair a channel, of shape (1, C, 1, 1).
        lambda_range, kappa_range: the uniform distributions that initial values are drawn from. The
            defaults are the published ones for the gates of a detector.
        lambda_min: λ is clamped to at least this.

    Raises:
        ValueError: an empty or negative range, or a negative ``lambda_min``.
    """

    def __init__(
        self,
        num_channels: int | None = None,
        *,
        lambda_range: tuple[float, float] = (0.0, 1.0),
        kappa_range: tuple[float, float] = (-1.0, 0.0),
        lambda_min: float = 1e-4,
    ):
        super().__init__()
        _check_range("lambda_range", lambda_range)
        _check_range("kappa_range", kappa_range)
        if lambda_range[0] < 0 or lambda_min < 0:
            raise ValueError(f"λ cannot be negative: {lambda_range=}, {lambda_min=}.")
        self.num_channels = num_channels
        self.lambda_range = lambda_range
        self.kappa_range = kappa_range
        self.lambda_min = lambda_min
        shape = (1,) if num_channels is None else (1, num_channels, 1, 1)
        self.lambda_param = nn.Parameter(torch.empty(shape))
        self.kappa_param = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.lambda_param, *self.lambda_range)
        nn.init.uniform_(self.kappa_param, *self.kappa_range)

    def parameters_for(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """λ, clamped, and κ in a shape that broadcasts along dimension 1 of ``z``.

        Raises:
            ValueError: there is one pair a channel, and ``z`` has other channels.
        """
        lambda_, kappa = self.lambda_param.clamp(min=self.lambda_min), self.kappa_param
        if self.num_channels is None:
            return lambda_, kappa
        if z.dim() < 2 or z.shape[1] != self.num_channels:
            raise ValueError(
                f"{type(self).__name__} has {self.num_channels} channels; "
                f"its input has shape {tuple(z.shape)}."
            )
        shape = (1, self.num_channels) + (1,) * (z.dim() - 2)
        return lambda_.view(shape), kappa.view(shape)

    def forward(self, z: Tensor) -> Tensor:
        """Args: z of shape (N, C, ...) or, with one λ and κ, any. Returns: η(z), alike."""
        return apa(z, *self.parameters_for(z))

    def extra_repr(self) -> str:
        return f"num_channels={self.num_channels}, lambda_min={self.lambda_min}"


class AGLU(APA):
    """AGLU with learned λ and κ, in the place of an activation such as ReLU.

    Arguments as for :class:`APA`; the default ranges are the published ones for a detector.
    """

    def __init__(
        self,
        num_channels: int | None = None,
        *,
        lambda_range: tuple[float, float] = (0.0, 1.0),
        kappa_range: tuple[float, float] = (1.0, 1.3),
        lambda_min: float = 1e-4,
    ):
        super().__init__(
            num_channels,
            lambda_range=lambda_range,
            kappa_range=kappa_range,
            lambda_min=lambda_min,
        )

    def forward(self, z: Tensor) -> Tensor:
        """Args: z of shape (N, C, ...) or, with one λ and κ, any. Returns: z · η(z), alike."""
        return aglu(z, *self.parameters_for(z))


def _check_range(name: str, values: tuple[float, float]) -> None:
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"{name} takes (low, high) with low <= high, not {tuple(values)}.")
