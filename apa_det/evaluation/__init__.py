from ..data.frequency import FrequencyGroups
from .detections import Detections, Masks
from .drawing import draw_detections, draw_groups
from .engines import evaluate, load_engine
from .evaluator import EXTRA_METRICS, METRICS, LongTailEvaluator, task_metrics
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .report import write_report
from .result import Evaluation, Matches, metric_names
from .result_files import read_results
from .side_by_side import Comparison, compare
from .subset import choose_subset
from .v3det_evaluator import V3DetEvaluator

__all__ = [
    "EXTRA_METRICS",
    "METRICS",
    "Comparison",
    "Detections",
    "Evaluation",
    "FrequencyGroups",
    "GroundTruth",
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
