"""A report of a comparison, in one folder."""

from .write import write_report

__all__ = ["write_report"]
