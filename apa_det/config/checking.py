"""Checks of all values of a config, before anything is built from it."""

from collections.abc import Iterator, Mapping
from functools import cache

from detectron2.config import CfgNode, get_cfg
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from ..text import shown
from .defaults import KEYS, add_apa_config
from .detectron2_keys import DETECTRON2_KINDS, conflicts
from .kinds import Kind, anything, boolean, integer, list_of, must_be, number, text
from .lazy_keys import LAZY_KEYS, REQUIRED_LAZY_KEYS

_BY_TYPE = {bool: boolean, str: text, int: integer(), float: number()}
_BY_TYPE |= dict.fromkeys((list, tuple), list_of(anything))


@cache
def yaml_kinds() -> Mapping[str, Kind]:
    """Return the kind of each key of a yaml config; by default, that of the type of its default."""
    cfg = get_cfg()
    add_apa_config(cfg)
    kinds = DETECTRON2_KINDS | {name: key.kind for name, key in KEYS.items()}
    return {
        name: kinds.get(name) or _BY_TYPE.get(type(default), anything)
        for name, default in _leaves(cfg)
    }


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def lazy_kinds() -> Mapping[str, Kind]:
    """Return the kind of each key of a LazyConfig that is checked."""
    kinds = yaml_kinds()
    return {k: kinds[kind] if isinstance(kind, str) else kind for k, kind in LAZY_KEYS.items()}


def check_values(cfg: CfgNode | DictConfig) -> None:
    """Check the values of a yaml config, or of a LazyConfig for training.

    The modules that register the user's components must be imported before.

    Raises:
        UserError: a value is missing, or is not allowed; the message names its key.
    """
    for fault in _yaml_faults(cfg) if isinstance(cfg, CfgNode) else _lazy_faults(cfg):
        raise UserError(fault if fault.endswith("?") else f"{fault}.")


def _yaml_faults(cfg: CfgNode) -> Iterator[str]:
    for key, kind in yaml_kinds().items():
        value: object = cfg
        for name in key.split("."):
            if not isinstance(value, CfgNode) or name not in value:
                yield f"The config has no key {key}: override the keys of its group one by one"
            value = value[name]
        if fault := kind.fault(value):
            yield key + fault
    yield from conflicts(cfg)


def _lazy_faults(cfg: DictConfig) -> Iterator[str]:
    for key, kind in lazy_kinds().items():
        try:
            yield from _lazy_fault(cfg, key, kind)
        except OmegaConfBaseException as error:
            yield f"{key}: {' '.join(str(error).split())}"


def _lazy_fault(cfg: DictConfig, key: str, kind: Kind) -> Iterator[str]:
    *nodes, last = key.split(".")
    node: object = cfg
    for depth, name in enumerate(nodes, start=1):
        node = node.get(name)
        if _is_plain(node):
            yield ".".join(nodes[:depth]) + must_be("a group of keys", shown(node))
        if not isinstance(node, DictConfig):  # missing, or an object that is already built
            break
    exists = isinstance(node, DictConfig) and last in node
    if not exists:
        if key in REQUIRED_LAZY_KEYS:
            yield f"The config has no key {key}: set it"
        return
    value = node.get(last)
    if isinstance(value, ListConfig | DictConfig):
        value = OmegaConf.to_container(value, resolve=isinstance(value, ListConfig))
    # Only arguments of LazyCalls may be objects, and have defaults that None stands for
    if key in REQUIRED_LAZY_KEYS or key.startswith("train.") or _is_plain(value):
        if fault := kind.fault(value):
            yield key + fault


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | bytes | list | ListConfig)
