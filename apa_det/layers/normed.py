"""Linear layers and convolutions with L2-normalized weights and inputs: cosine classifiers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

_EPS = 1e-6


def l2_normalize(x: Tensor, eps: float = _EPS) -> Tensor:
    """Compute x / (‖x‖₂ + eps) along dimension 1, in float32 or float64; return the dtype of x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype)
    return (x / (norm + eps)).to(x.dtype)


def normed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | float = 1.0,
    eps: float = _EPS,
) -> Tensor:
    """Compute temperature · cos(x, weight) + bias for each input and each row of the weight.

    "Seesaw Loss for Long-Tailed Instance Segmentation" (Wang et al., CVPR 2021), section 3.3.

    Args:
        x: shape (N, C).
        weight, bias: shape (K, C) and (K,).
        temperature: a number or a tensor with one element.
        eps: added to the norms.

    Returns:
        Shape (N, K).
    """
    return F.linear(l2_normalize(x, eps), _normed_weight(weight, temperature, eps), bias)


def normed_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | float = 1.0,
    eps: float = _EPS,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolve as :func:`normed_linear`; pixels and kernel taps are normalized over channels.

    Maps x of shape (N, C, H, W) and weights (K, C, kernel height, kernel width) to (N, K, H', W');
    ``stride``, ``padding`` and ``dilation`` are those of :func:`torch.nn.functional.conv2d`.
    """
    weight = _normed_weight(weight, temperature, eps)
    return F.conv2d(l2_normalize(x, eps), weight, bias, stride, padding, dilation)


def _normed_weight(weight: Tensor, temperature: Tensor | float, eps: float) -> Tensor:
    weight = l2_normalize(weight, eps)
    if isinstance(temperature, float):  # TorchScript requires one type per branch
        return weight * temperature
    return weight * temperature


def wrapped_cauchy_linear(x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> Tensor:
    """Compute logits as wrapped Cauchy densities of the angles to the class weights.

    logit = 300 · (1/2/3.14) · (1 − γ²) / (1 + γ² − 2γ·cos) with γ = sigmoid(g), where cos is
    :func:`normed_linear` with temperature 1, including the bias. From "Wrapped Cauchy Distributed
    Angular Softmax for Long-Tailed Visual Recognition" (Han, ICML 2023), with the constants of
    Alexandridis et al. (ECCV 2024), which round π.

    The computation uses float32 or float64, under autocast too, since the formula amplifies
    rounding errors a thousandfold near cos = 1. The bias can push cos above 1 and beyond the pole,
    where logits are negative.

    Args:
        x: shape (N, C).
        weight, bias, g: shapes (K, C), (K,) and (K,).

    Returns:
        Shape (N, K).
    """
    with torch.autocast(x.device.type, enabled=False):
        return _wrapped_cauchy_linear(x, weight, bias, g)


def _wrapped_cauchy_linear(x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    gamma = g.sigmoid().to(dtype)
    cosine = normed_linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
    density = (1 - gamma**2) / (1 + gamma**2 - 2 * gamma * cosine)
    return 300 * (1 / 2 / 3.14) * density


class _Temperature(nn.Module):
    """Mixin for the scale of the cosines: fixed, or the square of a learned parameter."""

    def _add_temperature(self, temperature: float, learn_temperature: bool) -> None:
        if temperature <= 0:
            raise UserError(f"temperature must be positive, got {temperature}.")
        self.learn_temperature = learn_temperature
        if learn_temperature:
            self.temperature = nn.Parameter(torch.tensor(math.sqrt(temperature)))
        else:
            self.temperature = temperature
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def factor(self) -> Tensor | float:
        return self.temperature**2 if self.learn_temperature else self.temperature

    def extra_repr(self) -> str:
        learned = "learned" if self.learn_temperature else self.temperature
        return f"{super().extra_repr()}, temperature={learned}"


class NormedLinear(_Temperature, nn.Linear):
    """:func:`normed_linear` as a module.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`.
        temperature: scale of the cosines; the initial scale if it is learned.
        learn_temperature: if True, learn the parameter ``temperature``, the square root of the
            scale.

    Raises:
        UserError: if ``temperature`` is not positive.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        temperature: float = 20.0,
        learn_temperature: bool = False,
    ):
        super().__init__(in_features, out_features, bias)
        self._add_temperature(temperature, learn_temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, K)."""
        return normed_linear(x, self.weight, self.bias, self.factor)


class NormedConv2d(_Temperature, nn.Conv2d):
    """:func:`normed_conv2d` as a module.

    Args:
        in_channels, out_channels, kernel_size: as in :class:`torch.nn.Conv2d`.
        temperature, learn_temperature: as in :class:`NormedLinear`.
        conv_args: ``stride``, ``padding``, ``dilation`` and ``bias`` of :class:`torch.nn.Conv2d`.

    Raises:
        UserError: if ``temperature`` is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        temperature: float = 20.0,
        learn_temperature: bool = False,
        **conv_args,
    ):
        super().__init__(in_channels, out_channels, kernel_size, **conv_args)
        self._add_temperature(temperature, learn_temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H', W')."""
        return normed_conv2d(
            x,
            self.weight,
            self.bias,
            self.factor,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )


class WrappedCauchyLinear(nn.Linear):
    """:func:`wrapped_cauchy_linear` as a module, with a learned ``g`` per class, initially 1."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.g = nn.Parameter(torch.ones(out_features))
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, K), in float32 or float64."""
        if torch.jit.is_scripting():
            return _wrapped_cauchy_linear(x, self.weight, self.bias, self.g)
        return wrapped_cauchy_linear(x, self.weight, self.bias, self.g)
