from .course import draw_course, layer_kinds, read_course
from .distributions import GeneralizedLogistic, fit
from .inputs import ACTIVATION, CLASS_SCORE, GATE, InputSample, InputSampler, eta_parameters
from .layer_statistics import Analysis, Layer, analyze
from .output import write_analysis

__all__ = [
    "ACTIVATION",
    "Analysis",
    "CLASS_SCORE",
    "GATE",
    "GeneralizedLogistic",
    "InputSample",
    "InputSampler",
    "Layer",
    "analyze",
    "draw_course",
    "eta_parameters",
    "fit",
    "layer_kinds",
    "read_course",
    "write_analysis",
]
