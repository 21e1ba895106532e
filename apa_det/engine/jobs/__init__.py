"""Jobs other than training and evaluation."""

from .analyze import analyze_checkpoint
from .calibrate import CalibrationFit, fit_calibration
from .predict import write_predictions
