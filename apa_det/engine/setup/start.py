"""Set up a job from command-line arguments: config, datasets, loggers, seeds and checks."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, ListConfig

from ...config import check_values
from ...utils.log_file import FILE_ONLY, keep_from_terminal
from ...utils.writable import require_writable_folder
from ..job import Job
from ..model_classes import choose_num_classes
from ..run_folder import claim_folder, release_folder
from ..yaml_trainer import Trainer
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
            modules that were imported to register components; ``overwrite``.

    Returns:
        The job. Its device is cpu if the config asks for CUDA and there is none.

    Raises:
        UserError: the config is invalid, see :func:`check_job`. The output folder has only the log
            then. Or a training cannot use the output folder, see
            :func:`apa_det.engine.run_folder.claim_folder`.
    """
    imports = getattr(args, "imports", None) or ()
    config, unset = _read(os.fspath(args.config_file), args.opts, imports)
    is_yaml = isinstance(config, CfgNode)
    output_dir = config.OUTPUT_DIR if is_yaml else config.train.output_dir
    key = (YamlJob if is_yaml else LazyJob).KEYS["output_dir"]
    require_writable_folder(output_dir, key)
    if not args.eval_only:
        overwrite = getattr(args, "overwrite", False)
        claim_folder(output_dir, key=key, resume=args.resume, overwrite=overwrite)
    try:
        setup_logger(output_dir, distributed_rank=comm.get_rank(), name="apa_det")
        job = _prepare(config, unset)
        job = choose_num_classes(job, eval_only=args.eval_only, resume=args.resume)
        check_job(job, eval_only=args.eval_only, resume=args.resume)
        _start(job, args)
    except Exception:
        if not args.eval_only:
            release_folder(output_dir)
        raise
    return job


def _start(job: Job, args: argparse.Namespace) -> None:
    """Do what detectron2's ``default_setup`` does, with a config file that is never incomplete."""
    rank = comm.get_rank()
    setup_logger(job.output_dir, distributed_rank=rank, name="fvcore")
    detectron2_logger = setup_logger(job.output_dir, distributed_rank=rank)
    if job.output_dir:
        keep_from_terminal(detectron2_logger)
        keep_from_terminal(logging.getLogger("apa_det"))
    log = partial(detectron2_logger.info, extra=FILE_ONLY)
    detectron2_logger.info(
        "Rank of current process: %d. World size: %d", rank, comm.get_world_size()
    )
    log("Environment info:\n%s", collect_env_info())
    log("Command line arguments: %s", args)
    if args.config_file:
        with open(args.config_file, encoding="utf-8", errors="replace") as file:
            log("Contents of args.config_file=%s:\n%s", args.config_file, file.read())
    if comm.is_main_process() and job.output_dir:
        if isinstance(job.config, CfgNode):
            log("Running with full config:\n%s", job.config.dump())
        job.save_config()
        detectron2_logger.info(
            "Full config saved to %s; the environment and the model are described in %s",
            *(os.path.join(job.output_dir, name) for name in ("config.yaml", "log.txt")),
        )
    if not _has_extension():
        detectron2_logger.info(
            "detectron2 runs without its compiled extension detectron2._C: rotated boxes, "
            "deformable convolutions and the C++ COCO evaluation are missing, which apa_det does "
            "not need."
        )
    random_seed = int.from_bytes(os.urandom(4), "big")  # a trainer draws and logs its own
    seed_all_rng(random_seed if job.seed < 0 else job.seed + rank)
    if not args.eval_only:
        is_lazy = not isinstance(job.config, CfgNode)
        settings = job.config.train if is_lazy else job.config
        key = "cudnn_benchmark" if is_lazy else "CUDNN_BENCHMARK"
        torch.backends.cudnn.benchmark = bool(settings.get(key, False))


def _has_extension() -> bool:
    try:
        import_module("detectron2._C")
    except ImportError:
        return False
    return True


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
