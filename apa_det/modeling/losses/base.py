"""Base classes and registry of the box head's classification losses."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...activation import logit_apa
from ...data.class_counts import check_num_classes
from ...errors import UserError
from ..feature_replay import FeatureReplay

BOX_CLASS_LOSS_REGISTRY = Registry("BOX_CLASS_LOSS")
BOX_CLASS_LOSS_REGISTRY.__doc__ = """
Classification losses of the box head, subclasses of :class:`BoxClassLoss`.

``MODEL.ROI_BOX_HEAD.CLASS_LOSS`` selects one. It is built by ``obj(cfg)``.
"""

# Class scores η(z; λ, κ), computed per class, unlike "softmax"
BINARY_SCORES = ("sigmoid", "gumbel", "apa")

# λ and κ of a class score
Curve = tuple[Tensor | float, Tensor | float]
SIGMOID: Curve = (1.0, 1.0)


class BoxClassLoss(nn.Module):
    """Base class of the losses in :data:`BOX_CLASS_LOSS_REGISTRY`.

    Attributes:
        class_scores: the supported class scores.
        num_classes: K, the number of foreground classes.
        num_outputs: number of outputs of the classification layer, or None for that of the class
            score. If set, the method ``probabilities`` converts the outputs to scores of shape
            (N, K + 1).
        takes_class_weights: whether the loss supports ``MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS``.
    """

    class_scores: tuple[str, ...] = BINARY_SCORES
    num_outputs: int | None = None
    takes_class_weights = False

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES}

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None) -> Tensor:
        """Return the loss, a scalar; 0 without proposals.

        Args:
            logits: shape (N, K + 1) for softmax, background last; (N, K) for the other scores; or
                (N, ``num_outputs``) if that is set.
            gt_classes: int64, shape (N,), K for the background.
            curve: λ and κ of the class score, with one element or shape (1, K): :data:`SIGMOID`,
                (0, 1) for "gumbel", the learned parameters for "apa", None for softmax. See
                :func:`log_odds`.
        """
        raise NotImplementedError

    def look_up(self) -> None:
        """Look up what the loss needs of the training datasets, which must be loaded.

        Raises:
            UserError: the datasets do not provide it.
        """


class FrequencyLoss(BoxClassLoss):
    """A loss that depends on the class frequencies of the training datasets.

    They are looked up by :meth:`look_up` or in the first training step, so a model can be built
    for inference without the datasets.
    """

    def __init__(self, num_classes: int, datasets: str | Sequence[str] = ()):
        super().__init__(num_classes)
        self.datasets = [datasets] if isinstance(datasets, str) else datasets
        self._class_values: Tensor | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "datasets": cfg.DATASETS.TRAIN}

    def compute_class_values(self) -> Tensor:
        """Return one value per class, shape (K,), such as its weight.

        Raises:
            UserError: the datasets do not provide what is needed.
        """
        raise NotImplementedError

    def look_up(self) -> None:
        if self._class_values is None:
            user = f"The class loss {type(self).__name__}"
            values = self.compute_class_values()
            self._class_values = check_num_classes(values, self.num_classes, user)

    def class_values(self, device: torch.device) -> Tensor:
        """Return :meth:`compute_class_values`, computed once."""
        self.look_up()
        self._class_values = self._class_values.to(device)
        return self._class_values


def build_box_class_loss(cfg: CfgNode) -> BoxClassLoss:
    """Build the loss of ``MODEL.ROI_BOX_HEAD.CLASS_LOSS``, ``USE_DROP_LOSS`` or ``USE_FED_LOSS``.

    Raises:
        UserError: the name is unknown, keys contradict each other, or a setting is invalid.
    """
    head = cfg.MODEL.ROI_BOX_HEAD
    named = {
        f"CLASS_LOSS {head.CLASS_LOSS}": head.CLASS_LOSS,
        "USE_DROP_LOSS True": "DropLoss" if head.USE_DROP_LOSS else "",
        "USE_FED_LOSS True": "FederatedLoss" if head.USE_FED_LOSS else "",
    }
    named = {key: name for key, name in named.items() if name}
    if len(set(named.values())) > 1:
        first, second, *_ = named
        both = f"MODEL.ROI_BOX_HEAD.{first} contradicts MODEL.ROI_BOX_HEAD.{second}"
        raise UserError(f"{both}. Change one of the two.")
    name = next(iter(named.values()), "CrossEntropy")
    if name not in BOX_CLASS_LOSS_REGISTRY:
        known = ", ".join(sorted(known for known, _ in BOX_CLASS_LOSS_REGISTRY))
        raise UserError(f"MODEL.ROI_BOX_HEAD.CLASS_LOSS must be one of {known}; got {name!r}.")
    loss = BOX_CLASS_LOSS_REGISTRY.get(name)
    if head.CLASS_WEIGHTS is not None and not loss.takes_class_weights:
        raise UserError(
            "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is supported by CLASS_LOSS CrossEntropy and "
            f"FocalLoss, not by {name}. Set it to None."
        )
    return loss(cfg)


def look_up_frequencies(model: nn.Module) -> None:
    """Call the method ``look_up`` of every class loss and replay in a model.

    Raises:
        UserError: the training datasets do not provide what one of them needs.
    """
    for module in model.modules():
        if isinstance(module, BoxClassLoss | FeatureReplay):
            module.look_up()


def is_sigmoid(curve: Curve) -> bool:
    """Return whether λ and κ are those of :data:`SIGMOID`, which are not learned."""
    return not any(isinstance(value, Tensor) for value in curve) and curve == SIGMOID


def log_odds(logits: Tensor, curve: Curve) -> Tensor:
    """Return the log-odds of the scores η(logits; λ, κ), shape (N, K), in float32 or more."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if is_sigmoid(curve) else logit_apa(logits, *curve)


def one_hot(gt_classes: Tensor, num_classes: int) -> Tensor:
    """Return one-hot targets: boolean, shape (N, K), all False for the background."""
    return gt_classes[:, None] == torch.arange(num_classes, device=gt_classes.device)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place. Every process must call it."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
