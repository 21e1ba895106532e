"""Errors that the user can fix, and how an error ends a command."""

import logging
import sys

from .text import printable

_MAX_LINE = 10_000  # characters


class UserError(ValueError):
    """A config, a file or an argument is not valid; the message says what to change.

    PyTorch raises the error of a data worker again, with a traceback before the message, which is
    dropped.
    """

    def __init__(self, *args):
        if args and isinstance(args[0], str) and args[0].startswith("Caught "):
            name = f"{type(self).__module__}.{type(self).__qualname__}: "
            args = (args[0].rpartition(name)[2].rstrip(), *args[1:])
        super().__init__(*args)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says how to install it."""


def report(error: BaseException, command: str) -> int | None:
    """Report the error that ends a command, in its ``except`` clause.

    Args:
        error: a :class:`UserError` is printed on stderr as ``command: message``, without its
            traceback. The traceback of any other exception is left to Python. Both are also written
            to the log files of the loggers "apa_det" and "detectron2", once.
        command: the name of the command.

    Returns:
        The exit status: 2 after a UserError, 130 after Ctrl-C. None: raise the error again, so that
        Python prints its traceback.
    """
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UserError):
        message = _message(error)
        print(f"{command}: {message}", file=sys.stderr, flush=True)
        _write_to_log_files(message)
        return 2
    if not getattr(error, "_in_log_file", False):
        _write_to_log_files("Stopped by an error:", error)
        error._in_log_file = True
    return None


def _message(error: UserError) -> str:
    return "\n".join(printable(line, _MAX_LINE) for line in str(error).rstrip().split("\n"))


def _write_to_log_files(message: str, error: BaseException | None = None) -> None:
    """Write to the files of both loggers, which may be the same one, and not to the terminal."""
    handlers = {}
    for name in ("apa_det", "detectron2"):
        for handler in logging.getLogger(name).handlers:
            file = getattr(getattr(handler, "stream", None), "name", None)
            if isinstance(file, str) and not file.startswith("<"):  # <stdout>, <stderr>
                handlers.setdefault(file, handler)
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("apa_det", logging.ERROR, __file__, 0, message, (), exc_info)
    for handler in handlers.values():
        handler.handle(record)
