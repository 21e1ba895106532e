from .. import errors

try:
    import cv2  # noqa: F401  # lvis and detectron2's Visualizer need it
except ImportError as error:
    raise errors.MissingPackageError(
        f"Evaluation and drawing need OpenCV ({error}). Run: pip install opencv-python-headless"
    ) from error

from ..data.frequency import FrequencyGroups
from .coco_evaluator import COCOEvaluator
from .comparison import Comparison
from .confusions import Confusion, find_confusions
from .detections import Detections, Masks
from .drawing import draw_detections, draw_groups
from .engines import evaluate, load_engine
from .error_types import DetectionErrors, ErrorTypes, find_errors, summarize_errors
from .evaluator import METRICS, LongTailEvaluator, evaluator_arguments
from .extras import fixed_ap, pooled_ap
from .false_positives import FalsePositive, worst_false_positives
from .ground_truth import GroundTruth
from .metrics import METRIC_REGISTRY, evaluator_metric_names, require_extra_metrics
from .report import write_report
from .result import Evaluation, Matches, metric_names
from .result_files import read_results
from .score_curves import ScoreCurve, ScoreCurves, curves_by_score
from .side_by_side import compare
from .subset import choose_subset, read_image_ids
from .v3det_evaluator import V3DetEvaluator
