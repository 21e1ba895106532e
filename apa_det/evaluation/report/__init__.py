"""Report of a comparison: an HTML page with figures and tables."""

from .build import write_report

__all__ = ["write_report"]
