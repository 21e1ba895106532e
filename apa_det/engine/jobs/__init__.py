"""Jobs other than training and evaluation."""

from .analyze import analyze_checkpoint
from .calibrate import CalibrationFit, fit_calibration
from .predict import write_predictions

__all__ = ["CalibrationFit", "analyze_checkpoint", "fit_calibration", "write_predictions"]
