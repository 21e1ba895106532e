"""Train and evaluate several configs with several seeds each, and compare them in one table."""

from .damage import discard_damaged
from .difference_figure import write_figure
from .plan import Plan, Row, Run, read_plan
from .replay import ReproducibleLoader
from .results import Difference, Results, gather
from .run_list import list_runs
from .running import run_all
from .table import write_tables
from .training import train_run
