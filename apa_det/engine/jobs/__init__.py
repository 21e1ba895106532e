"""Jobs other than training and evaluation."""

from .analyze import analyze_checkpoint
from .calibrate import CalibrationFit, fit_calibration
from .calibrate_results import calibrate_results
from .predict import write_predictions
from .thresholds import ThresholdFit, fit_thresholds
