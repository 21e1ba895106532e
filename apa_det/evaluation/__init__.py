from .drawing import draw_detections
from .evaluator import METRICS, LongTailEvaluator
from .hooks import BestCheckpointer, LambdaKappaWriter
from .v3det import V3DetEvaluator

__all__ = [
    "METRICS",
    "BestCheckpointer",
    "LambdaKappaWriter",
    "LongTailEvaluator",
    "V3DetEvaluator",
    "draw_detections",
]
