"""The config keys of apa_det: their defaults, their allowed values and their documentation."""

from .checking import check_values, lazy_kinds, yaml_kinds
from .defaults import add_apa_config
from .kinds import must_be
