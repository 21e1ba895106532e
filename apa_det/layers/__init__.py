"""Activations, gates, norms, CARAFE and normed classifiers: the layers used by the models."""

from .activations import ACTIVATION_REGISTRY, Swish, activation_from_config, get_activation
from .carafe import CARAFE
from .fused import can_fuse, conv_norm_aglu, norm_gate_shortcut_aglu
from .gates import (
    GATE_REGISTRY,
    CBAMGate,
    SEGate,
    SpatialGate,
    gate_from_config,
    get_gate,
    keep_strongest,
)
from .norm import EvalBatchNorm2d, norm_from_name, scale_and_shift
from .normed import (
    NormedConv2d,
    NormedLinear,
    WrappedCauchyLinear,
    normed_conv2d,
    normed_linear,
    wrapped_cauchy_linear,
)
