"""From command-line arguments to a checked LazyConfig, with loggers and datasets in place."""

import argparse
import logging
from collections.abc import Sequence

from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from ...data import ensure_metadata, require_dataset_files
from ...evaluation import LongTailEvaluator, evaluator_metric_names
from .checks import (
    require_classes_of_weights,
    require_equal_parts,
    require_no_nccl_for_cpu,
    require_num_classes,
    require_weights,
)
from .yaml import available_device, register_datasets

__all__ = [
    "check_num_classes",
    "is_lazy_config",
    "read_calibration_datasets",
    "read_lazy_config",
    "setup_lazy",
]

logger = logging.getLogger(__name__)

_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
_MODELS = ("model", "model.model")  # the second within L(apa_det.modeling.injected)
_NUM_CLASSES_KEYS = [f"{m}.{key}num_classes" for m in _MODELS for key in ("roi_heads.", "")]


def setup_lazy(args: argparse.Namespace) -> DictConfig:
    """Read a LazyConfig, register the datasets it brings, check it, and set up the job.

    Args:
        args: as detectron2's ``default_argument_parser`` gives them; ``config_file``, ``opts``,
            ``eval_only`` and ``resume`` are read.

    Returns:
        The config. ``train.device`` is cpu where it asks for CUDA and there is none.

    Raises:
        FileNotFoundError, ValueError: something in the config does not hold. Nothing but the log is
            in ``train.output_dir`` by then.
    """
    cfg = read_lazy_config(args)
    train = cfg.train
    setup_logger(train.output_dir, distributed_rank=comm.get_rank(), name="apa_det")
    register_datasets(cfg.dataloader.get("lvis_format", ()), "dataloader.lvis_format")
    train.device = available_device(train.device, "train.device")
    require_no_nccl_for_cpu(train.device, "train.device")
    require_weights(
        *(train.init_checkpoint, train.output_dir, "train.init_checkpoint"),
        eval_only=args.eval_only,
        resume=args.resume,
    )
    if args.eval_only and cfg.dataloader.get("evaluator") is None:
        raise ValueError("--eval-only needs a dataloader.evaluator, and the config has none.")
    _check_datasets(cfg, args.eval_only)
    if not args.eval_only:
        _check_training(cfg)
        require_classes_of_weights(
            *(train.get("transfer_from", ""), train.init_checkpoint, "train.init_checkpoint")
        )
    default_setup(cfg, args)
    return cfg


def read_lazy_config(args: argparse.Namespace) -> DictConfig:
    """The config of ``args.config_file`` with the overrides of ``args.opts``, ``key=value``.

    An override changes a key that is there, or gives one more argument to a call. Any other new
    key is written ``+key=value``.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no config for training, or an
            override is not right.
    """
    if not PathManager.isfile(args.config_file):
        raise FileNotFoundError(
            f"There is no config file {args.config_file}."
            if args.config_file
            else "A LazyConfig is needed: --config-file FILE.py."
        )
    if not is_lazy_config(args.config_file):
        raise ValueError(
            f"{args.config_file} is a yaml config: tools/train_net.py trains it. LazyConfig's own "
            "are .py files."
        )
    cfg = LazyConfig.load(args.config_file)
    missing = [part for part in _PARTS if part not in cfg]
    if missing:
        raise ValueError(f"{args.config_file} is no config for training: it lacks {missing[0]}.")
    for option in args.opts:
        _require_key(cfg, option)
    try:
        return LazyConfig.apply_overrides(cfg, args.opts)
    except Exception as error:  # those of Hydra, OmegaConf and detectron2
        message = " ".join(str(error).partition("\nSee ")[0].split())
        raise ValueError(f"The options of the command line: {message}") from error


def check_num_classes(cfg: DictConfig, names: Sequence[str]) -> None:
    """:func:`require_num_classes` with the number of classes of the model, if it has one key."""
    for key in _NUM_CLASSES_KEYS:
        num_classes = OmegaConf.select(cfg, key)
        if num_classes is not None:
            require_num_classes(num_classes, key, names)


def dataset_names(cfg: DictConfig, split: str) -> list[str]:
    """The registered datasets of ``dataloader.train`` or ``dataloader.test``, as far as named."""
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names")
    return [names] if isinstance(names, str) else list(names or ())


def box_predictors(cfg: DictConfig) -> list[str]:
    """The keys of the box predictors: one, those of a cascade, or none."""
    keys = []
    for model in _MODELS:
        heads = f"{model}.roi_heads"
        number = len(OmegaConf.select(cfg, f"{heads}.box_predictors") or ())
        keys += [f"{heads}.box_predictors.{i}" for i in range(number)]
        if OmegaConf.select(cfg, f"{heads}.box_predictor") is not None:
            keys.append(f"{heads}.box_predictor")
    return keys


def read_calibration_datasets(cfg: DictConfig) -> None:
    """Read the datasets whose ``class_image_count`` a calibration needs in the first inference.

    Raises:
        FileNotFoundError, ValueError: one is missing or broken.
    """
    for key in box_predictors(cfg):
        names = OmegaConf.select(cfg, f"{key}.calibration_datasets") or ()
        for name in [names] if isinstance(names, str) else names:
            ensure_metadata(name)


def _require_key(cfg: DictConfig, option: str) -> None:
    """Raise a ValueError for an override of what is not there: a slip that would do nothing."""
    key, node = option.partition("=")[0], cfg
    if key.startswith(("+", "~")):
        return
    for name in key.split("."):
        if not isinstance(node, DictConfig) or "_target_" in node:
            return
        if name not in node:
            raise ValueError(
                f"The config has no key {key}, as there are {', '.join(node)} in the place of "
                f"{name}. To add it write +{option}"
            )
        node = node[name]


def _is_long_tail(evaluator: DictConfig) -> bool:
    target = evaluator._target_
    return (locate(target) if isinstance(target, str) else target) is LongTailEvaluator


def is_lazy_config(path: str) -> bool:
    """Whether a config file that exists is a LazyConfig: no yaml, or one that holds calls.

    Such a yaml is the config.yaml of a training.
    """
    if not path.endswith((".yaml", ".yml")):
        return True
    with PathManager.open(path) as f:
        return "_target_" in f.read()


def _check_datasets(cfg: DictConfig, eval_only: bool) -> None:
    test = dataset_names(cfg, "test")
    train = [] if eval_only else dataset_names(cfg, "train")
    for name in train + test:
        require_dataset_files(name)
    check_num_classes(cfg, test)
    check_num_classes(cfg, [n for n in train if MetadataCatalog.get(n).get("thing_classes")])
    if train and OmegaConf.select(cfg, "model.roi_heads.box_predictor.use_fed_loss"):
        ensure_metadata(train[0])  # building the model needs its class_image_count
    read_calibration_datasets(cfg)


def _check_training(cfg: DictConfig) -> None:
    batch_key = "dataloader.train.total_batch_size"
    require_equal_parts(
        *(OmegaConf.select(cfg, batch_key), batch_key),
        *(cfg.train.get("accumulate", 1), "train.accumulate"),
        comm.get_world_size(),
    )
    metric, evaluator = cfg.train.get("best_metric", ""), cfg.dataloader.get("evaluator")
    if metric and evaluator is None:
        raise ValueError(f"train.best_metric is {metric}, and there is no dataloader.evaluator.")
    if metric and _is_long_tail(evaluator) and "groups" not in evaluator:
        names = evaluator_metric_names(extra=evaluator.get("extra_metrics", ()))
        task, _, name = metric.rpartition("/")
        if name not in names or not task.endswith(("bbox", "segm", "boundary")):
            raise ValueError(
                f"train.best_metric {metric} is no metric of this evaluation: choose bbox/ or "
                f"segm/, and one of {', '.join(names)}."
            )
