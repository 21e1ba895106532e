from ..data.class_thresholds import ClassInfo, class_info, class_thresholds
from .files import find_images, output_paths
from .ground_truth_ids import GroundTruthIds
from .predictor import Predictor, build_predictor
from .run import run_on_images, run_on_video
from .video import VIDEO_EXTENSIONS, open_video
