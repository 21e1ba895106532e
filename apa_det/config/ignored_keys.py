"""A warning at the first optimizer step about config keys that were set, but do not act."""

import gc
import logging
import math
import weakref
from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from . import places
from .defaults import KEYS
from .lazy_keys import LAZY_KEYS

logger = logging.getLogger(__name__)

_CURVE = ("lambda_param", "kappa_param")
# Keys of LazyConfigs that detectron2 lacks, but that correspond to keys that it has
_LAZY_ONLY = {
    "train.test_augmentation.enabled": False,
    "train.precise_bn.enabled": False,
    "train.reference_world_size": 0,
    "train.clip_gradients.clip_type": "",
}
_pending: list[RemovableHandle] = []  # of the last call of warn_of_ignored_keys


def warn_of_ignored_keys(cfg: CfgNode | DictConfig, model: nn.Module | None = None) -> None:
    """Log one warning at the first optimizer step if keys were set that do not act.

    A later call replaces this one. The keys of evaluation are not checked, because evaluators may
    be built later.

    Args:
        cfg: a yaml config with the keys of apa_det, or a LazyConfig.
        model: wait for the first step of an optimizer that has parameters of this model. None: of
            any optimizer.
    """
    for handle in _pending:
        handle.remove()
    reference = None if model is None else weakref.ref(model)
    checked = False

    def check(optimizer: torch.optim.Optimizer, *_) -> None:
        nonlocal checked
        if checked:  # the step of a subclass calls that of its base class, and both call hooks
            return
        if reference is not None and (trained := reference()) is not None:
            if _groups(optimizer).keys().isdisjoint(map(id, trained.parameters())):
                return  # the optimizer of another model
        checked = True
        # A hook cannot remove itself while it runs
        optimizer.register_step_post_hook(lambda *_: handle.remove())
        if reference is not None and trained is None:
            return
        faults = [*ignored_keys(cfg, optimizer)]
        if faults:
            logger.warning(
                "These config keys were set, but do not act in this training:\n  %s\n"
                "docs/config.md says where each key acts.",
                "\n  ".join(faults),
            )

    handle = register_optimizer_step_pre_hook(check)
    _pending[:] = [handle]


def ignored_keys(cfg: CfgNode | DictConfig, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Yield the keys that were set and do not act in the training of an optimizer, and why.

    What acts is found among the objects of the process: the parameter groups, the modules that own
    the parameters, and the trainers, hooks and samplers.
    """
    training = _Training(optimizer)
    if not training.modules:  # the parameters belong to no module
        return
    for shown, name, value, default in _values(cfg):
        value = [*value] if isinstance(value, list | tuple | ListConfig) else value
        if value != default and (fault := training.fault(name, value)):
            yield f"{shown} {value}: {fault}"


def _values(cfg: CfgNode | DictConfig) -> Iterator[tuple[str, str, object, object]]:
    """Yield name, name of the yaml key, value and default of each key that the config has."""
    if isinstance(cfg, CfgNode):
        for name, key in KEYS.items():
            node: object = cfg
            for part in name.split("."):
                node = node.get(part) if isinstance(node, CfgNode) else None
            yield name, name, node, key.default
        return
    for name, kind in LAZY_KEYS.items():
        value = OmegaConf.select(cfg, name, default=None)
        if name.startswith("train.") and value is not None:
            if name.startswith("train.ddp."):  # read by detectron2's scripts too
                continue
            if name in _LAZY_ONLY:
                yield name, name, value, _LAZY_ONLY[name]
            elif kind in KEYS:
                yield name, kind, value, KEYS[kind].default


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, dict]:
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def _lr(group: dict) -> float:
    """Return the learning rate of a group, without the factor of its schedule."""
    return float(group.get("initial_lr", group["lr"]))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class _Training:
    """The objects that take part in the training of an optimizer.

    Attributes:
        groups: the group of each parameter, by its id.
        modules: all modules of the models that own them.
        parameters: the parameters of these models, by name, in their order.
        types: qualified names of the classes of the modules, and of all objects of the process
            that are not modules.
        classes: these, and their base classes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.groups = _groups(optimizer)
        objects = gc.get_objects()
        modules = [o for o in objects if issubclass(type(o), nn.Module) and "_modules" in vars(o)]
        inner = {id(child) for module in modules for child in module.children()}
        roots = [module for module in modules if id(module) not in inner]
        roots = [m for m in roots if any(id(p) in self.groups for p in m.parameters())]
        self.modules = [module for root in roots for module in root.modules()]
        self.parameters = {
            name.removeprefix("module.").replace("_orig_mod.", ""): parameter  # DDP, torch.compile
            for root in roots
            for name, parameter in root.named_parameters()
        }
        types = {type(module) for module in self.modules}
        types |= {t for t in map(type, objects) if not issubclass(t, nn.Module)}
        self.types = {*map(_name, types)}
        self.classes = {_name(base) for t in types for base in t.__mro__}

    def fault(self, name: str, value: object) -> str | None:
        """Return why a yaml key does not act; None if it does, or if that cannot be seen."""
        if name == "MODEL.APA.WEIGHT_DECAY":
            return self._weight_decay_fault(value)
        if name == "MODEL.APA.LR_FACTOR":
            return self._lr_fault(value)
        if name == "SOLVER.OPTIMIZER":
            used = type(self.optimizer).__name__
            is_adamw = isinstance(self.optimizer, torch.optim.AdamW)
            return f"the optimizer is {used}" if value == "ADAMW" and not is_adamw else None
        if name == "SOLVER.TRAINED":
            return self._trained_fault(value)
        if name.startswith("MODEL.APA.INJECT."):
            injected = any("_apa_replaced" in vars(module) for module in self.modules)
            return None if injected else "nothing was injected: call apa_det.build_model(cfg)"
        place = places.TRAINER if name in _LAZY_ONLY else KEYS[name].place
        if not place.classes or not self.classes.isdisjoint(place.classes):
            return None
        if place.others and self.types.isdisjoint(place.others):
            return None
        return f"it acts in {place.text.replace('`', '')}, which this training does not use"

    def _curve(self) -> dict[str, dict]:
        """Return the groups of λ and κ by name."""
        return {
            name: self.groups[id(p)]
            for name, p in self.parameters.items()
            if name.endswith(_CURVE) and id(p) in self.groups
        }

    def _weight_decay_fault(self, value: float) -> str | None:
        for name, group in self._curve().items():
            if group.get("weight_decay") != value:
                return (
                    f"{name} has the weight decay {group.get('weight_decay')}: give the optimizer "
                    "apa_det.param_groups(cfg, model)"
                )
        return None if self._curve() else "the optimizer has no λ and κ"

    def _lr_fault(self, factor: float) -> str | None:
        """Compare the learning rate of λ and κ with that of the weight before them."""
        curve = self._curve()
        rates = {
            name: _lr(self.groups[id(p)])
            for name, p in self.parameters.items()
            if id(p) in self.groups and name.endswith("weight")
        }
        last = next(iter(rates.values()), None)
        for name in self.parameters:
            last = rates.get(name, last)
            if name in curve and last is not None:
                if not math.isclose(_lr(curve[name]), factor * last, rel_tol=1e-3):
                    return (
                        f"{name} has the learning rate {_lr(curve[name]):g}, the weights {last:g}: "
                        "give the optimizer apa_det.param_groups(cfg, model)"
                    )
        return None if curve else "the optimizer has no λ and κ"

    def _trained_fault(self, patterns: list[str]) -> str | None:
        for name, p in self.parameters.items():
            if id(p) in self.groups and p.requires_grad:
                if not any(fnmatchcase(name, pattern) for pattern in patterns):
                    return f"{name} is trained: call apa_det.engine.train_only(model, patterns)"
        return None
