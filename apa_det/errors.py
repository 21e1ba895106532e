"""Errors that the user can mend. A tool shows them as one sentence, without a traceback."""

__all__ = ["MissingFileError", "MissingPackageError", "UserError"]


class UserError(ValueError):
    """A config, a file or an argument is not valid; the message says what to change."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""

class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says how to install it."""
