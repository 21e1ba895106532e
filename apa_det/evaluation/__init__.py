from .evaluator import METRICS, LongTailEvaluator
from .hooks import BestCheckpointer, LambdaKappaWriter

__all__ = ["METRICS", "BestCheckpointer", "LambdaKappaWriter", "LongTailEvaluator"]
