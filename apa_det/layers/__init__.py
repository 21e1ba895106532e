from .activations import activation_from_config, get_activation
from .carafe import CARAFE
from .fused import conv_norm_aglu, fuses, norm_gate_shortcut_aglu
from .gates import CBAMGate, SEGate, gate_from_config, get_gate
from .norm import EvalBatchNorm2d, norm_from_name, scale_and_shift
from .normed import (
    NormedConv2d,
    NormedLinear,
    WrappedCauchyLinear,
    normed_conv2d,
    normed_linear,
    wrapped_cauchy_linear,
)

__all__ = [
    "CARAFE",
    "CBAMGate",
    "EvalBatchNorm2d",
    "NormedConv2d",
    "NormedLinear",
    "SEGate",
    "WrappedCauchyLinear",
    "activation_from_config",
    "conv_norm_aglu",
    "fuses",
    "gate_from_config",
    "get_activation",
    "get_gate",
    "norm_from_name",
    "norm_gate_shortcut_aglu",
    "normed_conv2d",
    "normed_linear",
    "scale_and_shift",
    "wrapped_cauchy_linear",
]
