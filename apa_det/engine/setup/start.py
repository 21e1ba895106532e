"""Set up a job from command-line arguments: config, datasets, loggers, seeds and checks."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, ListConfig

from ...config import check_values
from ...utils.writable import require_writable_folder
from ..job import Job
from ..model_classes import choose_num_classes
from ..trainer import Trainer
from .checks import check_job
from .config_files import is_lazy_config, read_config_and_unset, read_lazy_config
from .lazy import LazyJob
from .yaml import YamlJob

logger = logging.getLogger(__name__)


def setup_job(args: argparse.Namespace) -> Job:
    """Read a config, register its datasets, check it, and set up loggers and seeds.

    Args:
        args: ``config_file`` (a yaml config, a LazyConfig or ""), ``opts``, ``eval_only`` and
            ``resume``, as from detectron2's ``default_argument_parser``. Optional: ``imports``, the
            modules that were imported to register components.

    Returns:
        The job. Its device is cpu if the config asks for CUDA and there is none.

    Raises:
        UserError: the config is invalid, see :func:`check_job`. The output folder has only the log
            then.
    """
    imports = getattr(args, "imports", None) or ()
    config, unset = _read(os.fspath(args.config_file), args.opts, imports)
    is_yaml = isinstance(config, CfgNode)
    output_dir = config.OUTPUT_DIR if is_yaml else config.train.output_dir
    require_writable_folder(output_dir, (YamlJob if is_yaml else LazyJob).KEYS["output_dir"])
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="apa_det")
    job = _prepare(config, unset)
    job = choose_num_classes(job, eval_only=args.eval_only, resume=args.resume)
    check_job(job, eval_only=args.eval_only, resume=args.resume)
    default_setup(job.config, args)
    return job


def read_job(
    config_file: str | os.PathLike,
    opts: Sequence[str] = (),
    imports: Sequence[str] = (),
    *,
    eval_only: bool = False,
) -> Job:
    """Read a config and register its datasets; check its values only, and create no output folder.

    Args:
        config_file: a yaml config or a LazyConfig.
        opts: overrides: ``KEY VALUE`` pairs of a yaml config, ``key=value`` of a LazyConfig.
        imports: the modules that were imported to register components.
        eval_only: the job loads a trained checkpoint; see :func:`choose_num_classes`.

    Raises:
        UserError: a file is missing, or an entry of the config is invalid.
    """
    job = _prepare(*_read(os.fspath(config_file), opts, imports))
    return choose_num_classes(job, eval_only=eval_only)


def overrides(config_file: str, values: Mapping[str, object]) -> list[str]:
    """Return overrides in the syntax of a config; settings have their names in ``Job.KEYS``."""
    if is_lazy_config(config_file):
        quoted = {name: str(value).replace("'", r"\'") for name, value in values.items()}
        return [f"{LazyJob.KEYS[name]}='{value}'" for name, value in quoted.items()]
    return [str(x) for name, value in values.items() for x in (YamlJob.KEYS[name], value)]


def _read(
    config_file: str, opts: Sequence[str], imports: Sequence[str]
) -> tuple[CfgNode | DictConfig, list[str]]:
    """Return the config, and the keys that :func:`read_config_and_unset` returns."""
    unset: list[str] = []
    if is_lazy_config(config_file):
        config = read_lazy_config(config_file, opts)
        node, key = config.train, "imports"
    else:
        config, unset = read_config_and_unset(config_file, opts)
        node, key = config, "IMPORTS"
    before = node.get(key) if isinstance(node, CfgNode | DictConfig) else None
    before = before if isinstance(before, list | ListConfig) else ()  # checked below
    missing = [name for name in before if name not in imports]
    if missing:
        logger.warning(
            "%s was written by a run with %s: add these flags if a component is not registered.",
            *(config_file, " ".join(f"--import {name}" for name in missing)),
        )
    check_values(config)
    node[key] = [*imports]
    return config, unset


def _prepare(config: CfgNode | DictConfig, unset: Sequence[str]) -> Job:
    if isinstance(config, CfgNode):
        return YamlJob.prepare(config, Trainer, unset)
    return LazyJob.prepare(config)
