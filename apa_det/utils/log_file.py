"""Long records that belong in the log file, not in the terminal."""

import logging
import sys

FILE_ONLY = {"file_only": True}
"""``extra`` of such a record."""


def keep_from_terminal(logger: logging.Logger) -> None:
    """Drop the records with :data:`FILE_ONLY` from the handlers of a logger for the terminal."""
    for handler in logger.handlers:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
            handler.addFilter(_is_for_terminal)


def _is_for_terminal(record: logging.LogRecord) -> bool:
    return not getattr(record, "file_only", False)
