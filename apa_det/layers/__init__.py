from .activations import activation_from_config, get_activation
from .gates import CBAMGate, SEGate, gate_from_config, get_gate
from .norm import EvalBatchNorm2d, norm_from_name

__all__ = [
    "CBAMGate",
    "EvalBatchNorm2d",
    "SEGate",
    "activation_from_config",
    "gate_from_config",
    "get_activation",
    "get_gate",
    "norm_from_name",
]
