from ..data.frequency import FrequencyGroups
from .coco_evaluator import COCOEvaluator
from .detections import Detections, Masks
from .drawing import draw_detections, draw_groups
from .engines import evaluate, load_engine
from .evaluator import METRICS, LongTailEvaluator, evaluator_arguments
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .metrics import METRIC_REGISTRY, evaluator_metric_names, require_extra_metrics
from .report import write_report
from .result import Evaluation, Matches, metric_names
from .result_files import read_results
from .side_by_side import Comparison, compare
from .subset import choose_subset
from .v3det_evaluator import V3DetEvaluator
