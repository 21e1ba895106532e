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

import os
from typing import Literal

import torch
from torch import Tensor, nn

from .kernels import eager, ops

__all__ = ["APA", "AGLU", "affine_aglu", "aglu", "apa", "apa_cross_entropy", "log_apa", "logit_apa"]

Backend = Literal["eager", "native", "triton"]

_CHOICES = ("auto", *ops.BACKENDS)
_PREFERRED = os.environ.get("APA_DET_BACKEND", "auto")
if _PREFERRED not in _CHOICES:
    raise ValueError(f"APA_DET_BACKEND is one of {', '.join(_CHOICES)}, not {_PREFERRED!r}.")


def apa(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """APA, η(z; λ, κ) = (λ e^(−κz) + 1)^(−1/λ), elementwise.

    Args:
        z: a floating-point tensor of any shape.
        lambda_: λ ≥ 0, a number or a tensor that broadcasts with ``z``. A negative λ in a tensor
            gives NaN.
        kappa: κ, a number or a tensor that broadcasts with ``z``.
        backend: what computes it: "triton" (CUDA), "native" (compiled, CPU) or "eager" (plain
            PyTorch, anywhere). None: the fastest that takes these tensors. The environment variable
            ``APA_DET_BACKEND`` narrows that choice to one of them, and plain PyTorch where it
            cannot run.

    Returns:
        A tensor of the dtype of ``z`` and the broadcast shape, in [0, 1].

    Raises:
        TypeError: ``z`` is not a floating-point tensor.
        ValueError: ``lambda_`` is a negative number, or ``backend`` does not take these tensors.
    """
    return _evaluate("apa", z, lambda_, kappa, backend)


def log_apa(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """log η(z; λ, κ), precise where η rounds to 0 or 1; otherwise as :func:`apa`."""
    return _evaluate("log_apa", z, lambda_, kappa, backend)


def logit_apa(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """The log-odds of η, log η(z; λ, κ) − log(1 − η(z; λ, κ)); otherwise as :func:`apa`.

    η = sigmoid(logit_apa(z)): ``binary_cross_entropy_with_logits`` of these log-odds is the binary
    cross-entropy of η, without overflow for any z.
    """
    return _evaluate("logit_apa", z, lambda_, kappa, backend)


def aglu(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """AGLU, z · η(z; λ, κ), elementwise; arguments and errors as for :func:`apa`."""
    return _evaluate("aglu", z, lambda_, kappa, backend)


def affine_aglu(
    x: Tensor,
    scale: Tensor | float,
    shift: Tensor | float,
    residual: Tensor | None,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """AGLU(scale · x + shift + residual), which reads and writes each element once.

    A norm on stored statistics before an AGLU is a scale and a shift, and a gate multiplies both:
    so this is norm, gate, shortcut and AGLU at once.

    Args:
        x: a floating-point tensor of shape (N, C, ...).
        scale, shift: numbers, or tensors that broadcast with ``x``, such as (1, C, 1, 1) or
            (N, C, 1, 1).
        residual: a tensor of the shape of ``x``, or None.
        lambda_, kappa, backend: as for :func:`apa`.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: as for :func:`apa`.
    """
    _check("affine_aglu", x, lambda_)
    parameters = _parameters(x, scale, shift, lambda_, kappa)
    scale, shift, lambda_, kappa = parameters
    if residual is not None:
        residual = residual.to(x.dtype).expand_as(x)
    if _is_exporting():
        u = eager.affine(x, scale, shift, residual)
        return eager.evaluate("aglu", u, lambda_, kappa).to(x.dtype)
    backend = _choose(backend, x, *parameters)
    return ops.affine_aglu(x, scale, shift, residual, lambda_, kappa, backend)


def apa_cross_entropy(
    logits: Tensor,
    gt_classes: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    scarce: Tensor | None = None,
    share: Tensor | None = None,
    clamp: float = 0.0,
    backend: Backend | None = None,
) -> Tensor:
    """Binary cross-entropy of the class scores η(logits; λ, κ), summed, in one pass over them.

    −log η for the class of a proposal, −log(1 − η) for the others. λ = 0 and κ = 1 is the loss of
    Gumbel scores, λ = κ = 1 that of the sigmoid. With ``scarce`` it has the weights of DropLoss:
    see :func:`apa_det.modeling.losses.drop_loss_weights`.

    Args:
        logits: a floating-point tensor of shape (N, K).
        gt_classes: int64, shape (N,), K for the background.
        lambda_, kappa: numbers, or tensors of one element or of shape (K,) or (1, K).
        scarce: boolean, shape (K,), the classes that DropLoss spares; None: all weights are 1.
        share: scalar, with ``scarce``: the probability that a background proposal's loss on a
            scarce class is kept. The draws follow the CPU's random state.
        clamp: logits are clamped to ± this; outside they get no gradient. 0: they are not.
        backend: as for :func:`apa`.

    Returns:
        A float32 scalar; float64 if ``logits``, ``lambda_`` or ``kappa`` is.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: as for :func:`apa`.
    """
    _check("apa_cross_entropy", logits, lambda_)
    lambda_, kappa = _parameters(logits, lambda_, kappa)
    logits, gt_classes, seed = logits.contiguous(), gt_classes.contiguous(), 0
    if scarce is not None:
        scarce, seed = scarce.contiguous(), int(torch.randint(2**62, ()))
    backend = _choose(backend, logits, lambda_, kappa)
    return ops.class_loss(logits, gt_classes, lambda_, kappa, scarce, share, seed, clamp, backend)


def _evaluate(
    form: eager.Form,
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    backend: Backend | None,
) -> Tensor:
    _check(form, z, lambda_)
    lambda_, kappa = _parameters(z, lambda_, kappa)
    if _is_exporting():
        return eager.evaluate(form, z, lambda_, kappa).to(z.dtype)
    shape = torch.broadcast_shapes(z.shape, lambda_.shape, kappa.shape)
    z = z.expand(shape)
    return ops.activation(z, lambda_, kappa, form, _choose(backend, z, lambda_, kappa))


def _check(name: str, z: Tensor, lambda_: Tensor | float) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{name} takes a floating-point tensor z, not {kind}.")
    if not isinstance(lambda_, Tensor) and lambda_ < 0:
        raise ValueError(f"{name} takes lambda_ >= 0, not {lambda_}.")


def _parameters(z: Tensor, *values: Tensor | float) -> list[Tensor]:
    """The values as tensors on the device of z, in the dtype to compute in."""
    dtypes = [t.dtype for t in (z, *values) if isinstance(t, Tensor)]
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [
        value.to(z.device, dtype)
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=dtype, device=z.device)
        for value in values
    ]


def _is_exporting() -> bool:
    """Whether a graph is made that has to run without apa_det: traced, exported, or for ONNX.

    To torch.compile, torch.compiler.is_exporting() is always true; torch 2.4 and 2.5 lack it, and
    their torch.export keeps the operators of apa_det.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return True
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def _choose(requested: Backend | None, z: Tensor, *parameters: Tensor) -> str:
    if requested is not None:
        if requested not in ops.BACKENDS:
            raise ValueError(f"The backend is one of {', '.join(ops.BACKENDS)}, not {requested!r}.")
        if requested != "eager" and not ops.BACKENDS[requested].supports(z, *parameters):
            raise ValueError(
                f"The backend {requested} does not run here, or not for a {z.dtype} tensor of "
                f"shape {tuple(z.shape)} and strides {z.stride()} on {z.device}: leave the choice "
                "to apa_det (backend=None)."
            )
        return requested
    for name in ("native", "triton") if _PREFERRED == "auto" else (_PREFERRED,):
        if name != "eager" and ops.BACKENDS[name].supports(z, *parameters):
            return name
    return "eager"


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
                f"The activation has {self.num_channels} channels; its input has shape {z.shape}."
            )
        shape = [1, self.num_channels] + [1] * (z.dim() - 2)
        return lambda_.view(shape), kappa.view(shape)

    def forward(self, z: Tensor) -> Tensor:
        """Args: z of shape (N, C, ...) or, with one λ and κ, any. Returns: η(z), alike."""
        lambda_, kappa = self.parameters_for(z)
        if torch.jit.is_scripting():
            return eager.evaluate("apa", z, lambda_, kappa).to(z.dtype)
        return apa(z, lambda_, kappa)

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
        lambda_, kappa = self.parameters_for(z)
        if torch.jit.is_scripting():
            return eager.evaluate("aglu", z, lambda_, kappa).to(z.dtype)
        return aglu(z, lambda_, kappa)


def _check_range(name: str, values: tuple[float, float]) -> None:
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"{name} takes (low, high) with low <= high, not {tuple(values)}.")
