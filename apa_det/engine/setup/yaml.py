"""From command-line arguments to a checked config, with loggers and datasets in place."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from yaml import YAMLError

from ...config import add_apa_config
from ...data import register_lvis_format
from .checks import check_config

__all__ = ["available_device", "errors_name", "read_config", "register_datasets", "setup"]

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, register the datasets it brings, check it, and set up the job.

    Args:
        args: as detectron2's ``default_argument_parser`` gives them; ``config_file`` (may be
            empty), ``opts``, ``eval_only`` and ``resume`` are read.

    Returns:
        The frozen config. ``MODEL.DEVICE`` is cpu where it asks for CUDA and there is none.

    Raises:
        FileNotFoundError, ValueError: something in the config does not hold, see
            :func:`check_config`. Nothing but the log is in ``OUTPUT_DIR`` by then.
    """
    cfg = read_config(args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="apa_det")
    register_datasets(cfg.DATASETS.LVIS_FORMAT, "DATASETS.LVIS_FORMAT")
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    check_config(cfg, eval_only=args.eval_only, resume=args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of ``args.config_file``, which may be empty, and ``args.opts``.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or something in it is no config.
    """
    cfg = get_cfg()
    add_apa_config(cfg)
    if args.config_file:
        if not PathManager.isfile(args.config_file):
            raise FileNotFoundError(f"There is no config file {args.config_file}.")
        with errors_name(args.config_file):
            cfg.merge_from_file(args.config_file)
    with errors_name("The options of the command line"):
        cfg.merge_from_list(args.opts)
    return cfg


def available_device(device: str, key: str) -> str:
    """The device of the config's key; cpu, with a warning, where it is CUDA and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("%s is %s, but there is no CUDA: using cpu.", key, device)
        return "cpu"
    return device


def register_datasets(entries: Sequence[Sequence[str]], key: str) -> None:
    """Register the datasets of LVIS format that the config names under a key.

    Raises:
        ValueError: an entry is not a name, a file and a folder, or the name is taken.
    """
    for entry in entries:
        if len(entry) != 3 or not all(isinstance(value, str) for value in entry):
            raise ValueError(f"{key} takes entries [name, json_file, image_root], not {entry}.")
        register_lvis_format(*entry)


@contextmanager
def errors_name(source: str) -> Iterator[None]:
    """Within, an error in reading a config becomes a ValueError that names where it was read."""
    try:
        yield
    except (AssertionError, KeyError, ValueError, OSError, YAMLError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"{source}: {message}") from error
