"""What reading either config format has in common."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from yaml import YAMLError

from ...data import register_lvis_format
from ...errors import UserError

__all__ = ["available_device", "config_errors", "register_datasets"]

logger = logging.getLogger(__name__)


@contextmanager
def config_errors(source: str) -> Iterator[None]:
    """Turn the errors of reading a config into a UserError that names where it was read."""
    try:
        yield
    except (AssertionError, KeyError, ValueError, OSError, YAMLError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{source}: {message}") from error


def available_device(device: str, key: str) -> str:
    """Return the device of the config's key, or "cpu" with a warning if there is no CUDA."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("%s is %s, but CUDA is not available: using cpu.", key, device)
        return "cpu"
    return device


def register_datasets(entries: Sequence[Sequence[str]], key: str) -> None:
    """Register the datasets in LVIS format that the config lists under a key.

    Raises:
        UserError: an entry is not a name, a file and a folder, or the name is taken.
    """
    for entry in entries:
        if len(entry) != 3 or not all(isinstance(value, str) for value in entry):
            raise UserError(f"{key} must list [name, json_file, image_root], got {entry}.")
        register_lvis_format(*entry)
