"""Commands to print, which run as they are pasted into a POSIX shell."""

import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path


def apa_det_command(name: str, words: Iterable[object]) -> str:
    """Return a command line of apa_det, for the current folder and environment.

    Args:
        name: the command, e.g. "eval".
        words: its arguments, which are quoted where needed.
    """
    return shlex.join([*_program(), name, *map(str, words)])


def _program() -> list[str]:
    script = _script()
    if script is not None:
        return [_shortest(script)]
    root = Path(__file__).parents[2]
    module = [_shortest(Path(sys.executable)), "-m", "apa_det_cli"]
    if root == Path.cwd() or root.name in ("site-packages", "dist-packages"):
        return module
    return ["env", f"PYTHONPATH={root}", *module]


def _script() -> Path | None:
    """Return the program apa-det of this environment; None if it is not installed."""
    script = Path(sys.executable).with_name("apa-det")
    return script if script.is_file() else None


def _shortest(program: Path) -> str:
    """Return the name of a program if it is on the PATH, else its path."""
    found = shutil.which(program.name)
    return program.name if found and Path(found) == program else _short(program)


def _short(path: Path) -> str:
    """Return a path relative to the current folder if it is inside of it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
