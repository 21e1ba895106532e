from .drawing import draw_detections
from .evaluator import METRICS, LongTailEvaluator
from .hooks import BestCheckpointer, LambdaKappaWriter

__all__ = [
    "METRICS",
    "BestCheckpointer",
    "LambdaKappaWriter",
    "LongTailEvaluator",
    "draw_detections",
]
