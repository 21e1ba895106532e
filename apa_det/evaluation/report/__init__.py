"""A report of a comparison, in one folder."""

from .build import write_report

__all__ = ["write_report"]
