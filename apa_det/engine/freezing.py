"""Freeze all parameters of a model except some."""

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UserError

logger = logging.getLogger(__name__)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches any pattern, e.g. ``"*score.*"`` (case-sensitive)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_matches(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """Raise a UserError for a pattern of a config key that matches no parameter name."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise UserError(
                f"{key} has the pattern {pattern!r}, which matches no parameter of the model. "
                f"Their names are {names[0]}, ..., {names[-1]}."
            )


def train_only(model: nn.Module, patterns: Sequence[str], key: str = "patterns") -> None:
    """Freeze all parameters of a model, in place, except those whose names match.

    Frozen parameters get no gradient. Batch norms without trained parameters, and dropouts whose
    module names do not match, stay in eval mode in ``model.train()`` too. Parameters that were
    frozen before stay frozen.

    Args:
        model: the model, not yet in DistributedDataParallel or sharded.
        patterns: name patterns, e.g. ``"roi_heads.box_head.*"``.
        key: their config key, for errors.

    Raises:
        UserError: a pattern matches no parameter, or no parameter is left to train.
    """
    require_matches(model, patterns, key)
    for name, parameter in model.named_parameters():
        if not matches(name, patterns):
            parameter.requires_grad_(False)
    trained = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise UserError(f"{key} {list(patterns)} matches only frozen parameters.")
    for name, module in model.named_modules():
        trains = any(p.requires_grad for p in module.parameters(recurse=False))
        trains = trains or matches(name, patterns)
        if isinstance(module, (_BatchNorm, _DropoutNd)) and not trains:
            module.eval()
            module.train = MethodType(_stay_in_eval, module)
    logger.info(
        "Training %d of %d weights; all others are frozen:\n  %s",
        sum(size for _, size in trained),
        sum(p.numel() for p in model.parameters()),
        "\n  ".join(name for name, _ in trained),
    )


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
