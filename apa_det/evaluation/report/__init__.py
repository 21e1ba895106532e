"""Report of a comparison: an HTML page with figures and tables."""

from .build import write_report
