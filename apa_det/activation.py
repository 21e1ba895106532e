"""The Adaptive Parametric Activation (APA) and the Adaptive Generalized Linear Unit (AGLU).

Alexandridis, Deng, Nguyen and Luo, "Adaptive Parametric Activation", ECCV 2024 (arXiv 2407.08567):

    η(z; λ, κ) = (λ e^(−κz) + 1)^(−1/λ)        APA, λ > 0
    AGLU(z) = z · η(z; λ, κ)

With λ = κ = 1, APA is the sigmoid and AGLU is SiLU. As λ → 0, APA tends to the Gumbel CDF
e^(−e^(−κz)); as κ → ∞, AGLU tends to ReLU.

All functions have exact values and gradients (z, λ and κ), save only their inputs for the backward
pass, compute half-precision inputs in float32, and are finite wherever the true value is.
``lambda_`` and ``kappa`` are numbers, or tensors that broadcast with ``z``; λ = 0 selects the
Gumbel limit.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import UserError
from .kernels import eager, ops
from .kernels.class_loss import class_loss

_is_in_export = getattr(torch.compiler, "is_exporting", torch.onnx.is_in_onnx_export)

Backend = Literal["eager", "native", "triton"]


def apa(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute APA, η(z; λ, κ) = (λ e^(−κz) + 1)^(−1/λ), elementwise.

    Args:
        z: floating-point tensor of any shape.
        lambda_: λ >= 0, a number or a tensor that broadcasts with ``z``. Negative elements of a
            tensor give NaN.
        kappa: κ, a number or a tensor that broadcasts with ``z``.
        backend: "triton" (CUDA), "native" (compiled, CPU) or "eager" (plain PyTorch, any device).
            None: the fastest backend that supports these tensors. The environment variable
            ``APA_DET_BACKEND`` restricts this choice to one backend, with "eager" as fallback.

    Returns:
        Tensor of the broadcast shape and the dtype of ``z``, in [0, 1].

    Raises:
        TypeError: if ``z`` is not a floating-point tensor.
        ValueError: if ``lambda_`` is a negative number, or ``backend`` does not support these
            tensors.
    """
    return _evaluate("apa", z, lambda_, kappa, backend)


def log_apa(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute log η(z; λ, κ), accurate where η rounds to 0 or 1. Arguments as in :func:`apa`."""
    return _evaluate("log_apa", z, lambda_, kappa, backend)


def logit_apa(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute the log-odds log η(z; λ, κ) − log(1 − η(z; λ, κ)). Arguments as in :func:`apa`.

    Since η = sigmoid(logit_apa(z)), ``binary_cross_entropy_with_logits`` of these log-odds is the
    binary cross-entropy of η. It does not overflow for any z.
    """
    return _evaluate("logit_apa", z, lambda_, kappa, backend)


def aglu(
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Compute AGLU, z · η(z; λ, κ), elementwise. Arguments and errors as in :func:`apa`."""
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
    """Compute AGLU(scale · x + shift + residual), reading and writing each element once.

    A batch norm on running statistics is a scale and a shift, and a gate multiplies both. This
    function therefore fuses norm, gate, shortcut and AGLU.

    Args:
        x: floating-point tensor of shape (N, C, ...).
        scale, shift: numbers, or tensors that broadcast with ``x``, e.g. of shape (1, C, 1, 1) or
            (N, C, 1, 1).
        residual: tensor of the shape of ``x``, or None.
        lambda_, kappa, backend: as in :func:`apa`.

    Returns:
        Tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor.
        ValueError: as in :func:`apa`.
    """
    return _evaluate_affine(x, scale, shift, residual, lambda_, kappa, backend)


def apa_cross_entropy(
    logits: Tensor,
    gt_classes: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    *,
    weights: Tensor | None = None,
    shift: Tensor | None = None,
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    gamma: float = 0.0,
    scarce: Tensor | None = None,
    share: Tensor | None = None,
    clamp: float = 0.0,
    backend: Backend | None = None,
) -> Tensor:
    """Compute the summed binary cross-entropy of the class scores η(logits; λ, κ), in one pass.

    The loss is −log η for the ground-truth class of a proposal and −log(1 − η) for the others.
    λ = 0, κ = 1 gives the Gumbel loss; λ = κ = 1 the sigmoid loss. With ``scarce``, the loss has
    the weights of DropLoss: see :func:`apa_det.modeling.losses.drop_loss_weights`.

    Args:
        logits: floating-point tensor of shape (N, K).
        gt_classes: int64, shape (N,), in [0, K]; K is the background.
        lambda_, kappa: numbers, or tensors with one element or of shape (K,) or (1, K).
        weights: weight of each proposal's loss, shape (N,). None: 1.
        shift: added to the log-odds of the scores of each class, shape (K,). None: 0.
        positive_weights, negative_weights: weight of the loss of each class for its own and for
            other proposals, shape (K,). None: 1.
        gamma: γ of the focal loss, which multiplies −log p by (1 − p)^γ, where p is the score of
            the ground-truth class, and 1 − the score of other classes. 0: cross-entropy.
        scarce: bool mask of shape (K,), the classes that DropLoss protects. None: no DropLoss.
        share: scalar tensor, required with ``scarce``: the probability of keeping a background
            proposal's loss on a scarce class. The random draws are seeded from the CPU generator.
        clamp: clamp logits to [-clamp, clamp]; clamped logits get no gradient. 0: no clamp.
        backend: as in :func:`apa`.

    Only ``logits``, ``lambda_`` and ``kappa`` get gradients.

    Returns:
        Float32 scalar; float64 if ``logits``, ``lambda_`` or ``kappa`` is float64.

    Raises:
        TypeError: if a tensor has another dtype.
        ValueError: as in :func:`apa`, or if a tensor has another shape, or a label is out of range.
    """
    _check("apa_cross_entropy", logits, lambda_)
    lambda_, kappa = _parameters(logits, lambda_, kappa)
    constants = [
        None if t is None else t.to(logits.device, lambda_.dtype)
        for t in (weights, shift, positive_weights, negative_weights)
    ]
    seed = None if scarce is None else torch.randint(2**62, ())
    curve, drop_loss = (lambda_, kappa), (scarce, share, seed)
    return class_loss(
        logits.contiguous(),
        gt_classes,
        *curve,
        *constants,
        *drop_loss,
        gamma,
        clamp,
        backend or "auto",
    )


def _evaluate(
    form: eager.Form,
    z: Tensor,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    backend: Backend | None,
    lambda_min: float = -math.inf,
) -> Tensor:
    """Evaluate one form of APA, with λ clamped to at least ``lambda_min``."""
    backend = backend or "auto"
    plan = ops.find_plan(form, backend, z, lambda_, kappa)
    if plan:
        return ops.evaluate(plan, z, lambda_, kappa, form, backend, lambda_min)
    _check(form, z, lambda_)
    lambda_, kappa = _parameters(z, lambda_, kappa)
    if _is_exporting():
        return eager.evaluate(form, z, _clamped(lambda_, lambda_min), kappa).to(z.dtype)
    z = z.expand(torch.broadcast_shapes(z.shape, lambda_.shape, kappa.shape))
    return ops.activation(z, lambda_, kappa, form, backend, lambda_min)


def _evaluate_affine(
    x: Tensor,
    scale: Tensor | float,
    shift: Tensor | float,
    residual: Tensor | None,
    lambda_: Tensor | float,
    kappa: Tensor | float,
    backend: Backend | None,
    lambda_min: float = -math.inf,
) -> Tensor:
    """Evaluate :func:`affine_aglu`, with λ clamped to at least ``lambda_min``."""
    backend = backend or "auto"
    plan = ops.find_plan("aglu", backend, x, residual, scale, shift, lambda_, kappa)
    if plan:
        inputs = x, scale, shift, residual, lambda_, kappa
        return ops.evaluate_affine(plan, *inputs, backend, lambda_min)
    _check("affine_aglu", x, lambda_)
    scale, shift, lambda_, kappa = _parameters(x, scale, shift, lambda_, kappa)
    if residual is not None:
        residual = residual.to(x.dtype).expand_as(x)
    if _is_exporting():
        u = eager.affine(x, scale, shift, residual)
        return eager.evaluate("aglu", u, _clamped(lambda_, lambda_min), kappa).to(x.dtype)
    inputs = x, scale, shift, residual, lambda_, kappa
    return ops.affine_aglu(*inputs, backend, lambda_min)


def _clamped(lambda_: Tensor, lambda_min: float) -> Tensor:
    return lambda_ if lambda_min == -math.inf else lambda_.clamp(min=lambda_min)


def _check(name: str, z: Tensor, lambda_: Tensor | float) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{name} expects a floating-point tensor, got {kind}.")
    if not isinstance(lambda_, Tensor) and lambda_ < 0:
        raise ValueError(f"lambda_ of {name} must be >= 0, got {lambda_}.")


def _parameters(z: Tensor, *values: Tensor | float) -> list[Tensor]:
    """Return the values as tensors on the device of z, in float64 if any input is, else float32."""
    tensors = [z, *(value for value in values if isinstance(value, Tensor))]
    is_double = any(t.dtype == torch.float64 for t in tensors)
    dtype, device = torch.float64 if is_double else torch.float32, z.device
    return [
        (value if value.dtype == dtype and value.device == device else value.to(device, dtype))
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=dtype, device=device)
        for value in values
    ]


def _is_exporting() -> bool:
    """Return whether a graph that must run without apa_det is being traced or exported.

    Under torch.compile, torch.compiler.is_exporting() always returns True. torch 2.4 and 2.5 do not
    have it: there, graphs of torch.export contain the operators of apa_det, except for ONNX.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    return torch.jit.is_tracing() or _is_in_export()


class APA(nn.Module):
    """APA with learned λ and κ, for gates.

    Args:
        num_channels: None for one λ and one κ, of shape (1,). A number C for one λ and one κ per
            channel, of shape (1, C, 1, 1).
        lambda_range, kappa_range: (low, high) of the uniform distributions of the initial values.
            The defaults are those published for the gates of a detector.
        lambda_min: lower clamp of λ.

    Attributes:
        channel_dim: the dimension of the channels in the input.

    Raises:
        UserError: if a range has low > high, or ``lambda_range`` or ``lambda_min`` is negative.
    """

    channel_dim = 1

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
            raise UserError(
                f"lambda_range and lambda_min must be >= 0, got {tuple(lambda_range)} and "
                f"{lambda_min} (config keys MODEL.APA.LAMBDA_RANGE, GATE_LAMBDA_RANGE, LAMBDA_MIN)."
            )
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
        """Return the clamped λ and κ, shaped to broadcast along the channels of ``z``.

        Raises:
            ValueError: if the parameters are per channel and ``z`` has another number of channels.
        """
        lambda_, kappa = self._parameters_for(z)
        return lambda_.clamp(min=self.lambda_min), kappa

    def _parameters_for(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return λ and κ, shaped to broadcast along the channels of ``z``."""
        lambda_, kappa = self.lambda_param, self.kappa_param
        if self.num_channels is None:
            return lambda_, kappa
        if z.dim() < 2 or z.shape[1] != self.num_channels:
            raise ValueError(
                f"The activation has {self.num_channels} channels; its input has shape {z.shape}."
            )
        if z.dim() == 4:
            return lambda_, kappa
        shape = [1, self.num_channels] + [1] * (z.dim() - 2)
        return lambda_.view(shape), kappa.view(shape)

    def forward(self, z: Tensor) -> Tensor:
        """Return η(z), of the shape of z: (N, C, ...) if per channel, otherwise any shape."""
        if torch.jit.is_scripting():
            return eager.evaluate("apa", z, *self.parameters_for(z)).to(z.dtype)
        return _evaluate("apa", z, *self._parameters_for(z), None, self.lambda_min)

    def extra_repr(self) -> str:
        return f"num_channels={self.num_channels}, lambda_min={self.lambda_min}"


class AGLU(APA):
    """AGLU with learned λ and κ, a replacement for activations such as ReLU.

    Arguments as in :class:`APA`. The default ranges are those published for a detector.
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
        """Return z · η(z), of the shape of z: (N, C, ...) if per channel, otherwise any shape."""
        if torch.jit.is_scripting():
            return eager.evaluate("aglu", z, *self.parameters_for(z)).to(z.dtype)
        return _evaluate("aglu", z, *self._parameters_for(z), None, self.lambda_min)

    @torch.jit.unused
    def affine(
        self,
        x: Tensor,
        scale: Tensor | float,
        shift: Tensor | float,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return AGLU(scale · x + shift + residual): see :func:`affine_aglu`."""
        parameters = self._parameters_for(x)
        return _evaluate_affine(x, scale, shift, residual, *parameters, None, self.lambda_min)


def _check_range(name: str, values: tuple[float, float]) -> None:
    if len(values) != 2 or values[0] > values[1]:
        raise UserError(
            f"{name} must be (low, high) with low <= high, got {tuple(values)} (config keys "
            f"MODEL.APA.{name.upper()} and GATE_{name.upper()})."
        )
