"""What the losses of the box classifier have in common, and their registry."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...activation import logit_apa

__all__ = [
    "BINARY_SCORES",
    "BOX_CLASS_LOSS_REGISTRY",
    "SIGMOID",
    "BoxClassLoss",
    "Curve",
    "FrequencyLoss",
    "build_box_class_loss",
    "log_odds",
    "look_up_frequencies",
    "sum_over_processes",
]

BOX_CLASS_LOSS_REGISTRY = Registry("BOX_CLASS_LOSS")
BOX_CLASS_LOSS_REGISTRY.__doc__ = """
Losses of the box classifier, subclasses of :class:`BoxClassLoss`.

``MODEL.ROI_BOX_HEAD.CLASS_LOSS`` names one. It is built by ``obj(cfg)``.
"""

# The class scores η(z; λ, κ), each for itself; the other one is "softmax".
BINARY_SCORES = ("sigmoid", "gumbel", "apa")

Curve = tuple[Tensor | float, Tensor | float]
SIGMOID: Curve = (1.0, 1.0)


class BoxClassLoss(nn.Module):
    """A loss of the box classifier; base class of those in :data:`BOX_CLASS_LOSS_REGISTRY`.

    Attributes:
        class_scores: the class scores that it goes with.
        num_classes: K, the number of foreground classes.
        num_outputs: the outputs of the layer that predicts the classes, where the loss needs others
            than the class score; else None. It then has a method ``probabilities``, which gives the
            scores, of shape (N, K + 1), of these outputs.
        takes_class_weights: whether ``MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS`` has a meaning for it.
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
        """
        Args:
            logits: shape (N, K + 1) for softmax, the background last; (N, K) for the others.
            gt_classes: int64, shape (N,), K for the background.
            curve: λ and κ of the class score, of one element or shape (1, K): :data:`SIGMOID`,
                (0, 1) for "gumbel", or what "apa" has learned; None for softmax. See
                :func:`log_odds`.

        Returns:
            A scalar, 0 without proposals.
        """
        raise NotImplementedError

    def look_up(self) -> None:
        """Look at the training datasets, once they have been read, if the loss depends on them.

        Raises:
            ValueError: they do not tell what the loss needs.
        """


class FrequencyLoss(BoxClassLoss):
    """A loss that depends on how often classes occur in the training datasets.

    They are looked at by :meth:`look_up`, or in the first training step: a model that is built to
    detect needs none.
    """

    def __init__(self, num_classes: int, datasets: str | Sequence[str] = ()):
        super().__init__(num_classes)
        self.datasets = [datasets] if isinstance(datasets, str) else datasets
        self._of_classes: Tensor | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "datasets": cfg.DATASETS.TRAIN}

    def from_datasets(self) -> Tensor:
        """What the loss needs to know of each class, of shape (K,).

        Raises:
            ValueError: the datasets do not tell.
        """
        raise NotImplementedError

    def look_up(self) -> None:
        if self._of_classes is not None:
            return
        found = self.from_datasets()
        if found.shape != (self.num_classes,):
            raise ValueError(
                f"{type(self).__name__} got the frequencies of {len(found)} classes for a "
                f"predictor of {self.num_classes}: MODEL.ROI_HEADS.NUM_CLASSES has to be that of "
                "the training dataset."
            )
        self._of_classes = found

    def of_classes(self, device: torch.device) -> Tensor:
        """:meth:`from_datasets`, looked up once."""
        self.look_up()
        self._of_classes = self._of_classes.to(device)
        return self._of_classes


def build_box_class_loss(cfg: CfgNode) -> BoxClassLoss:
    """The loss that ``MODEL.ROI_BOX_HEAD.CLASS_LOSS`` names, or USE_DROP_LOSS or USE_FED_LOSS.

    Raises:
        ValueError: there is none of that name, keys contradict each other, or a setting is wrong.
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
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.{first} contradicts MODEL.ROI_BOX_HEAD.{second}: set one of them "
            "otherwise."
        )
    name = next(iter(named.values()), "CrossEntropy")
    if name not in BOX_CLASS_LOSS_REGISTRY:
        raise ValueError(
            f"Unknown MODEL.ROI_BOX_HEAD.CLASS_LOSS {name!r}: choose one of "
            f"{', '.join(sorted(known for known, _ in BOX_CLASS_LOSS_REGISTRY))}."
        )
    loss = BOX_CLASS_LOSS_REGISTRY.get(name)
    if head.CLASS_WEIGHTS is not None and not loss.takes_class_weights:
        raise ValueError(
            "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS goes with the CLASS_LOSS CrossEntropy and FocalLoss, "
            f"not with {name}: leave it out."
        )
    return loss(cfg)


def look_up_frequencies(model: nn.Module) -> None:
    """Let the class losses of a model look at the training datasets, which have been read.

    Raises:
        ValueError: the datasets do not tell what a loss needs.
    """
    for module in model.modules():
        if isinstance(module, BoxClassLoss):
            module.look_up()


def log_odds(logits: Tensor, curve: Curve) -> Tensor:
    """The log-odds of each class's score η(logits; λ, κ), whose sigmoid it is; at least float32.

    Args:
        logits: shape (N, K).
        curve: λ and κ, as for :class:`BoxClassLoss`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if curve is SIGMOID else logit_apa(logits, *curve)


def one_hot(gt_classes: Tensor, num_classes: int) -> Tensor:
    """Whether a class is that of the proposal: boolean, shape (N, K)."""
    return gt_classes[:, None] == torch.arange(num_classes, device=gt_classes.device)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place. Every process must call it."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
