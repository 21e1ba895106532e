"""Import the user's modules, which register activations, losses, samplers and the like."""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ..errors import MissingFileError, UserError


def import_modules(names: Sequence[str]) -> None:
    """Import modules of the user, each once.

    Args:
        names: dotted names, looked up in ``sys.path`` and then in the current folder; or paths of
            ``.py`` files, which are imported under their stem.

    Raises:
        UserError: a module or file does not exist, imports something that does not, or has the name
            of another module.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).absolute())
            else:
                _add_to_path(os.getcwd())
                importlib.import_module(name)
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"Cannot import {name}: {error}. Check --import.") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise MissingFileError(f"There is no file {path} to import. Check --import.")
    name = path.stem
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or not os.path.samefile(file, path):
            raise UserError(
                f"Cannot import {path}: another module is named {name}. Rename the file."
            )
        return
    _add_to_path(str(path.parent))  # for its neighbors, and for processes that unpickle its classes
    spec = spec_from_file_location(name, path)
    sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise


def _add_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
