from .classes import ClassInfo, class_info, class_thresholds
from .files import find_pictures, output_paths
from .predictor import Predictor, build_predictor
from .run import run_on_pictures, run_on_video
from .video import VIDEOS, open_video

__all__ = [
    "VIDEOS",
    "ClassInfo",
    "Predictor",
    "build_predictor",
    "class_info",
    "class_thresholds",
    "find_pictures",
    "open_video",
    "output_paths",
    "run_on_pictures",
    "run_on_video",
]
