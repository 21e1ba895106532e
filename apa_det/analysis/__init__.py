from .distributions import GeneralizedLogistic, fit
from .inputs import ACTIVATION, CLASS_SCORE, GATE, InputSample, InputSampler, eta_parameters
from .layer_statistics import Analysis, Layer, analyze
from .output import write_analysis
from .parameter_history import layer_kinds, plot_parameter_history, read_parameter_history
