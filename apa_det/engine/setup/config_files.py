"""Read config files of both formats, and what their settings have in common."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from yaml import YAMLError

from ...config import add_apa_config, must_be, yaml_kinds
from ...errors import MissingFileError, UserError
from ...model_zoo import configs_folder
from ...text import printable, shown
from ...utils.atomic_files import open_atomic
from ...utils.yaml_files import has_lazy_calls, merge_overrides, merge_yaml_config

logger = logging.getLogger(__name__)

_LAZY_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
_UNSET = -(2**62)  # number of classes; no valid one
_UNKNOWN_KEY = re.compile(r"Non-existent (?:config )?key: (.+)")
_WRONG_TYPE = re.compile(
    r"Type mismatch \(<class '(.+?)'> vs. <class '(.+?)'>\) with values \(.* vs\. (.*)\) "
    r"for config key: (\S+)",
    re.DOTALL,
)
_OVERRIDES = "The overrides on the command line"


def read_config(config_file: str, opts: Sequence = ()) -> CfgNode:
    """Read a yaml config with all keys of detectron2 and apa_det.

    Args:
        config_file: the file; "" for the defaults.
        opts: overrides, ``[KEY, VALUE, ...]``.

    Raises:
        UserError: the file is missing, or it or an override is not valid.
    """
    return read_config_and_unset(config_file, opts)[0]


def read_config_and_unset(config_file: str, opts: Sequence = ()) -> tuple[CfgNode, list[str]]:
    """Read a config as :func:`read_config` does.

    Returns:
        The config, and those of the keys ``MODEL.ROI_HEADS.NUM_CLASSES`` and
        ``MODEL.RETINANET.NUM_CLASSES`` that neither a file nor an override sets.
    """
    cfg = get_cfg()
    add_apa_config(cfg)
    nodes = {name: cfg.MODEL[name].NUM_CLASSES for name in ("ROI_HEADS", "RETINANET")}
    for name in nodes:
        cfg.MODEL[name].NUM_CLASSES = _UNSET
    if config_file:
        _require_file(config_file)
        with _explained_errors(config_file):
            merge_yaml_config(cfg, config_file)
    _require_yaml_keys(cfg, opts)
    with _explained_errors(_OVERRIDES):
        merge_overrides(cfg, opts, _OVERRIDES)
    unset = [name for name in nodes if cfg.MODEL[name].NUM_CLASSES == _UNSET]
    for name in unset:
        cfg.MODEL[name].NUM_CLASSES = nodes[name]
    return cfg, [f"MODEL.{name}.NUM_CLASSES" for name in unset]


@contextmanager
def _explained_errors(source: str) -> Iterator[None]:
    """Replace the text of yacs' errors by what a value must be, or by a similar key."""
    try:
        yield
    except UserError as error:
        cause = str(error.__cause__.args[0]) if error.__cause__ and error.__cause__.args else ""
        if unknown := _UNKNOWN_KEY.search(cause):
            raise UserError(f"{source}: {_unknown_key(unknown[1])}") from error
        if wrong := _WRONG_TYPE.fullmatch(cause):
            raise UserError(f"{source}: {_type_fault(*wrong.groups())}.") from error
        raise


def _unknown_key(key: str) -> str:
    kinds = yaml_kinds()
    ending = f".{key.rpartition('.')[2].upper()}"
    near = [name for name in kinds if name.endswith(ending)][:3]
    near = near or get_close_matches(key.upper(), kinds, n=1, cutoff=0.75)
    near = [key.upper()] if key.upper() in kinds else near
    question = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"there is no config key {printable(key)}.{question}"


def _require_yaml_keys(cfg: CfgNode, opts: Sequence) -> None:
    if len(opts) % 2:
        raise UserError(f"{_OVERRIDES} must be KEY VALUE pairs, got {shown(list(opts))}.")
    for key in map(str, opts[::2]):
        node = cfg
        for name in key.split("."):
            if not isinstance(node, CfgNode) or name not in node:
                raise UserError(f"{_OVERRIDES}: {_unknown_key(key)}")
            node = node[name]


def _type_fault(expected: str, given: str, value: str, key: str) -> str:
    if (expected, given) == ("float", "int"):
        return f"{key} must be a float, got {value}: write {value}.0"
    kind = yaml_kinds().get(key)
    value = shown(value) if given == "str" else printable(value, 120)
    return key + must_be(kind.text if kind else "a group of keys", value)


def is_lazy_config(path: str) -> bool:
    """Return whether a config file is a LazyConfig: not yaml, or yaml that contains LazyCalls.

    The ``config.yaml`` that the training of a LazyConfig saves is of the second kind. Like a .py
    file it is code: reading it can run anything. "" stands for the defaults of a yaml config.

    Raises:
        UserError: the file is missing, or is of neither format.
    """
    if not path:
        return False
    _require_file(path)
    if path.endswith(".py"):
        return True
    if not path.endswith((".yaml", ".yml")):
        raise UserError(f"A config file must end in .yaml, .yml or .py; got {path}.")
    return has_lazy_calls(path)


def read_lazy_config(config_file: str, opts: Sequence[str] = ()) -> DictConfig:
    """Read a LazyConfig for training. The file is code, also if it is yaml: it can run anything.

    Args:
        config_file: the file.
        opts: overrides: ``key=value`` for existing keys and arguments of LazyCalls,
            ``+key=value`` for other new keys.

    Raises:
        UserError: the file is missing or is not a training config, or an override is not valid.
    """
    if not is_lazy_config(config_file):
        raise UserError(f"{config_file or 'The config'} is not a LazyConfig.")
    if config_file.endswith(".py"):
        cfg = LazyConfig.load(config_file)
    else:
        with config_errors(config_file):
            cfg = LazyConfig.load(config_file)
    missing = [part for part in _LAZY_PARTS if part not in cfg]
    if missing:
        raise UserError(f"{config_file} is not a training config: missing key {missing[0]!r}.")
    for option in opts:
        _require_key(cfg, option)
    try:
        return LazyConfig.apply_overrides(cfg, list(opts))
    except Exception as error:  # of Hydra, OmegaConf or detectron2
        message = " ".join(str(error).partition("\nSee ")[0].split())
        raise UserError(f"{_OVERRIDES}: {message}") from error


def unset_keys(node: object, key: str) -> Iterator[str]:
    """Yield the keys ``num_classes`` within a plain config that are None or "???"."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        if name == "num_classes" and value in (None, "???"):
            yield f"{key}.{name}"
        yield from unset_keys(value, f"{key}.{name}")


def save_lazy_config(cfg: DictConfig, folder: str) -> None:
    """Write ``config.yaml`` into a folder, and a pickle if yaml cannot represent a value."""
    with TemporaryDirectory() as temporary:
        LazyConfig.save(cfg, os.path.join(temporary, "config.yaml"))
        for file in Path(temporary).iterdir():
            with open_atomic(os.path.join(folder, file.name), "wb") as copy:
                copy.write(file.read_bytes())


def _require_key(cfg: DictConfig, option: str) -> None:
    """Raise a UserError for an override of an unknown key, which would have no effect."""
    key, node = option.partition("=")[0], cfg
    if key.startswith(("+", "~")):
        return
    for name in key.split("."):
        if not isinstance(node, DictConfig) or "_target_" in node:
            return
        if name not in node:
            near = get_close_matches(name, node, n=1)
            question = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"The config has no key {key}: {name} must be one of {', '.join(node)}.{question} "
                f"To add a key, write +{option}"
            )
        node = node[name]


def _require_file(path: str) -> None:
    if not os.path.isfile(path):
        shipped = configs_folder() / path.removeprefix("configs/")
        hint = f" apa_det ships it as {shipped}." if shipped.is_file() else ""
        raise MissingFileError(f"There is no config file {printable(path, 500)}.{hint}")


def call_target(node: DictConfig) -> Callable | None:
    """Return what a LazyCall calls; in a saved config, it is the name. None: not a LazyCall."""
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


@contextmanager
def config_errors(source: str) -> Iterator[None]:
    """Turn errors of reading a config into UserErrors that start with their source."""
    try:
        yield
    except (AssertionError, KeyError, ValueError, OSError, YAMLError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{source}: {message}") from error


def available_device(device: str, key: str) -> str:
    """Return the device, or "cpu" with a warning if it needs CUDA and there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("%s is %s, but CUDA is not available: using cpu.", key, device)
        return "cpu"
    return device
