"""Training of some of the parameters, with the rest of the model frozen."""

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["matches", "require_matches", "train_only"]

logger = logging.getLogger(__name__)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the patterns, such as ``"*score.*"``, is that of a parameter's name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_matches(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """Raise a ValueError for a pattern of a config's key that no parameter's name matches."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise ValueError(
                f"{key} has the pattern {pattern!r}, and no parameter of the model has such a "
                f"name. They are called {names[0]}, ..., {names[-1]}."
            )


def train_only(model: nn.Module, patterns: Sequence[str], key: str = "patterns") -> None:
    """Freeze a model, in place, but for the parameters whose names match.

    Frozen parameters get no gradient. Batch norms that hold none of the others stay in eval mode,
    on stored statistics, whatever mode the model is set to, and so do dropouts whose own names do
    not match. What was frozen before stays so.

    Args:
        model: the model, not yet in DistributedDataParallel or sharded.
        patterns: of names, such as ``"roi_heads.box_head.*"``.
        key: what the config calls them, for errors.

    Raises:
        ValueError: a pattern matches no parameter, or nothing is left to train.
    """
    require_matches(model, patterns, key)
    for name, parameter in model.named_parameters():
        if not matches(name, patterns):
            parameter.requires_grad_(False)
    trained = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{key} {list(patterns)} leave no parameter that is not frozen to train.")
    for name, module in model.named_modules():
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, (_BatchNorm, _DropoutNd)) and not own and not matches(name, patterns):
            module.eval()
            module.train = MethodType(_stay_in_eval, module)
    logger.info(
        "%d of %d parameters train, all others are frozen:\n  %s",
        sum(size for _, size in trained),
        sum(p.numel() for p in model.parameters()),
        "\n  ".join(name for name, _ in trained),
    )


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
