"""Class scores that the heads of all detectors share: λ, κ, and the initial bias."""

import math

import torch
from torch import Tensor

from ..activation import APA
from ..errors import UserError
from .losses import SIGMOID, Curve


def build_apa_score(
    class_score: str,
    num_channels: int | None,
    lambda_range: tuple[float, float],
    kappa_range: tuple[float, float],
    lambda_min: float,
    node: str = "MODEL.ROI_BOX_HEAD",
) -> APA | None:
    """Return λ and κ of the class score "apa"; None for another one.

    Args:
        class_score: the class score.
        num_channels: K for λ and κ per class; None for a shared pair.
        lambda_range, kappa_range, lambda_min: see :class:`apa_det.activation.APA`.
        node: of the config keys, for messages.

    Raises:
        UserError: a range is invalid, or κ does not start above 0.
    """
    if class_score != "apa":
        return None
    if kappa_range[0] <= 0:
        value = tuple(kappa_range)
        raise UserError(f"{node}.SCORE_KAPPA_RANGE must be positive, got {value}.")
    return APA(
        num_channels, lambda_range=lambda_range, kappa_range=kappa_range, lambda_min=lambda_min
    )


def curve_of(class_score: str, score: APA | None, logits: Tensor) -> Curve:
    """Return λ and κ of "sigmoid", "gumbel" or "apa" for logits of shape (N, K)."""
    if class_score == "apa":
        return score.parameters_for(logits)
    return SIGMOID if class_score == "sigmoid" else (0.0, 1.0)


def inverse_apa(probability: float | Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """Return the z with η(z; λ, κ) = probability, which is in (0, 1).

    z = −log((p^(−λ) − 1) / λ) / κ, and −log(−log p) / κ for λ = 0.
    """
    log_p = probability.log() if isinstance(probability, Tensor) else math.log(probability)
    e = torch.where(lambda_ > 0, torch.expm1(-lambda_ * log_p) / lambda_, -log_p)
    return -e.log() / kappa


@torch.no_grad()
def set_prior_bias(
    bias: Tensor, class_score: str, score: APA | None, prior: float | None = None
) -> None:
    """Set the bias of a classifier, in place, so that each class starts with a given score.

    Args:
        bias: shape (A K,): K classes for each of A anchors.
        class_score: "sigmoid", "gumbel" or "apa".
        score: see :func:`build_apa_score`.
        prior: the initial score. None: the one that the bias has with the sigmoid.
    """
    num_classes = len(bias)
    if score is not None and score.num_channels is not None:
        num_classes = score.num_channels
    rows = bias.view(-1, num_classes)
    lambda_, kappa = map(torch.as_tensor, curve_of(class_score, score, rows))
    rows.copy_(inverse_apa(rows.sigmoid() if prior is None else prior, lambda_, kappa))
