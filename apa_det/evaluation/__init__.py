from .comparison import Comparison, compare
from .detections import Detections, Masks
from .drawing import draw_detections, draw_groups
from .engines import evaluate, load_engine
from .evaluator import EXTRA_METRICS, METRICS, LongTailEvaluator, task_metrics
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .groups import FrequencyGroups
from .hooks import BestCheckpointer, LambdaKappaWriter
from .report import write_report
from .result import Evaluation, Matches, metric_names
from .result_files import read_results
from .subset import choose_subset
from .v3det import V3DetEvaluator

__all__ = [
    "EXTRA_METRICS",
    "METRICS",
    "BestCheckpointer",
    "Comparison",
    "Detections",
    "Evaluation",
    "FrequencyGroups",
    "GroundTruth",
    "LambdaKappaWriter",
    "LongTailEvaluator",
    "Masks",
    "Matches",
    "V3DetEvaluator",
    "choose_subset",
    "compare",
    "draw_detections",
    "draw_groups",
    "evaluate",
    "fixed_ap",
    "load_engine",
    "metric_names",
    "pooled_ap",
    "read_results",
    "task_metrics",
    "write_report",
]
