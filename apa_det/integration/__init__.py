"""What trainings of other projects call: one line after the config is read, and the optimizer's
parameter groups."""

from .parameter_groups import param_groups
from .project_setup import setup
