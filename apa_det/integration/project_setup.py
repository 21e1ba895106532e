"""Setup of apa_det in a project with its own trainer."""

import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from ..checkpoint.project_weights import detectron2_weights
from ..config.ignored_keys import warn_of_ignored_keys
from ..data import ensure_metadata
from ..data.lvis_format import ensure_class_names, register_datasets, set_class_order
from ..errors import MissingFileError, UserError

logger = logging.getLogger(__name__)


def setup(cfg: CfgNode | DictConfig) -> None:
    """Set up apa_det for a config. Call it once the config is read, before the model is built.

    - Registers the datasets of ``DATASETS.LVIS_FORMAT``, and sets the class names of all datasets
      in LVIS format. Those with the same classes get the order of the first training set.
    - If ``MODEL.WEIGHTS`` is a local file that detectron2's checkpointer cannot read, such as a
      published detector of APA, converts it and sets the key to the copy. If the class names of
      the first test set are unknown, they are those in this file.
    - Sends the log of apa_det wherever that of ``detectron2`` goes, whichever is set up first.
    - Logs a warning at the first optimizer step if keys were set that do not act in this training.

    Args:
        cfg: a yaml config, frozen or not, with the keys of apa_det; or a LazyConfig.

    Raises:
        UserError: the name of a dataset is taken, or the categories in its file are not valid.
    """
    _share_log()
    get = _getter(cfg)
    register_datasets(
        get("DATASETS.LVIS_FORMAT", "dataloader.lvis_format", ()),
        allow_outside_root=get(
            "DATASETS.ALLOW_OUTSIDE_ROOT", "dataloader.allow_outside_root", False
        ),
    )
    train = _names(get("DATASETS.TRAIN", "dataloader.train.dataset.names", ()))
    test = _names(get("DATASETS.TEST", "dataloader.test.dataset.names", ()))
    _name_classes(train, test)
    if get("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "", False) and train:
        ensure_metadata(train[0])  # the model needs its class_image_count
    _find_weights(cfg, get("MODEL.WEIGHTS", "train.init_checkpoint", ""), test)
    warn_of_ignored_keys(cfg)


class _Detectron2Handler(logging.Handler):
    """Gives records to the logger ``detectron2``."""

    def emit(self, record: logging.LogRecord) -> None:
        target = logging.getLogger("detectron2")
        if target.isEnabledFor(record.levelno):
            target.handle(record)


def _share_log() -> None:
    own = logging.getLogger("apa_det")
    if not own.handlers:
        own.addHandler(_Detectron2Handler())
        own.propagate = False
        own.setLevel(logging.DEBUG)


def _getter(cfg: CfgNode | DictConfig):
    """Return a function of the yaml key, the key of a LazyConfig, and a default."""

    def get(key: str, lazy_key: str, default: object) -> object:
        if isinstance(cfg, DictConfig):
            value = OmegaConf.select(cfg, lazy_key, default=None) if lazy_key else None
            return default if value is None else value
        node: object = cfg
        for name in key.split("."):
            if not isinstance(node, CfgNode) or name not in node:
                return default
            node = node[name]
        return node

    return get


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _name_classes(train: Sequence[str], test: Sequence[str]) -> None:
    """Name the classes of the datasets in LVIS format, in the order of the first training set."""
    names = None
    for name in dict.fromkeys((*train, *test)):
        if name not in DatasetCatalog or not _has_names(name):
            continue
        metadata = MetadataCatalog.get(name)
        own = metadata.thing_classes
        if names is None and name in train:
            names = own
        if names is None or own == names or metadata.get("rare_max") is None:
            continue
        if sorted(own) == sorted(names):
            set_class_order(name, names)
            ensure_class_names(name)
        else:
            logger.warning(
                "%s has other classes than %s, but detectron2's training and evaluation go by "
                "position. For evaluation, apa_det.evaluation.by_name.by_name(evaluator, "
                "dataset_name, model) gives an evaluator that goes by name.",
                *(name, train[0]),
            )


def _has_names(name: str) -> bool:
    """Set the class names of a dataset if they are in a file that exists; return if it has any."""
    try:
        ensure_class_names(name)
    except MissingFileError as error:
        logger.info("The classes of %s are unknown: %s", name, error)
    return MetadataCatalog.get(name).get("thing_classes") is not None


def _find_weights(cfg: CfgNode | DictConfig, weights: str, test: Sequence[str]) -> None:
    if not os.path.isfile(weights):
        return
    try:
        path, names = detectron2_weights(weights)
    except UserError as error:
        logger.warning("%s It is left to detectron2, and its class names are unknown.", error)
        return
    if path != weights and isinstance(cfg, DictConfig):
        cfg.train.init_checkpoint = path
    elif path != weights:
        frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = path
        if frozen:
            cfg.freeze()
    if names and test and MetadataCatalog.get(test[0]).get("thing_classes") is None:
        MetadataCatalog.get(test[0]).thing_classes = names
