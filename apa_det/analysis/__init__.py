from .course import LambdaKappaPlotter, draw_course, read_course
from .distributions import GeneralizedLogistic, fit
from .inputs import ACTIVATION, CLASS_SCORE, GATE, InputSample, InputSampler, eta_parameters
from .layers import Analysis, Layer, analyze
from .write import write_analysis

__all__ = [
    "ACTIVATION",
    "Analysis",
    "CLASS_SCORE",
    "GATE",
    "GeneralizedLogistic",
    "InputSample",
    "InputSampler",
    "LambdaKappaPlotter",
    "Layer",
    "analyze",
    "draw_course",
    "eta_parameters",
    "fit",
    "read_course",
    "write_analysis",
]
