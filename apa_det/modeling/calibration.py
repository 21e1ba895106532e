"""Calibration of class scores after training, by how often each class was seen in it."""

import torch
import torch.nn.functional as F
from detectron2.utils.registry import Registry
from torch import Tensor, nn

__all__ = [
    "CALIBRATION_REGISTRY",
    "Calibration",
    "LogitAdjustment",
    "NorCal",
    "TauNorm",
    "logit_adjustment",
    "nor_cal",
    "tau_norm",
]

CALIBRATION_REGISTRY = Registry("CALIBRATION")
CALIBRATION_REGISTRY.__doc__ = """
Calibrations of the class scores of :class:`APAFastRCNNOutputLayers`, in inference alone.

Each is built with its strength, a number; see :class:`Calibration`.
"""


def nor_cal(log_odds: Tensor, class_counts: Tensor, gamma: float) -> Tensor:
    """NorCal: the odds of each class against the background, divided by a_c = N_c^γ.

    "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation" (Pan et al.,
    NeurIPS 2021): after the softmax, the score is (e^φ_c / a_c) / (Σ_k e^φ_k / a_k + e^φ_bg), the
    background's odds being left alone. A score that is binary, sigmoid, Gumbel or APA, has a
    background of its own: s_c / a_c over s_c / a_c + (1 − s_c).

    Args:
        log_odds: shape (N, K + 1): logits of a softmax, the background last, or log-odds of
            binary scores, whose last column does not count.
        class_counts: (K,) the training pictures N_c that show each class; 0 counts as 1.
        gamma: γ. 0 changes nothing.

    Returns:
        float32, shape (N, K + 1).
    """
    log_counts = class_counts.clamp(min=1).float().log()
    return log_odds.float() - gamma * F.pad(log_counts, (0, 1))


def logit_adjustment(log_odds: Tensor, class_counts: Tensor, tau: float) -> Tensor:
    """Post-hoc logit adjustment: φ_c − τ log π_c.

    "Long-tail learning via logit adjustment" (Menon et al., ICLR 2021), equation 9. π_c is the
    share of class c in the training set, N_c / Σ_k N_k. The background has none, and its logit
    stays: so every class gains on it, by τ log Σ_k N_k more than in :func:`nor_cal`.

    Args:
        log_odds, class_counts: as for :func:`nor_cal`.
        tau: τ. 0 changes nothing.

    Returns:
        float32, shape (N, K + 1).
    """
    counts = class_counts.clamp(min=1).float()
    return log_odds.float() - tau * F.pad((counts / counts.sum()).log(), (0, 1))


def tau_norm(logits: Tensor, weight: Tensor, bias: Tensor, num_classes: int, tau: float) -> Tensor:
    """τ-normalisation of a linear classifier: its logits with w_c / ‖w_c‖^τ in the place of w_c.

    "Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020),
    equation 5. That classifier has no bias and no background: here biases stay as they are, and so
    does the row of the background.

    Args:
        logits: shape (N, C), what the layer predicts: w_c · x + b_c.
        weight: shape (C, D).
        bias: shape (C,).
        num_classes: K; rows from K on are no classes.
        tau: τ. 0 changes nothing.

    Returns:
        float32, shape (N, C).
    """
    norms = weight.float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    norms = torch.where(torch.arange(len(norms), device=norms.device) < num_classes, norms, 1.0)
    return (logits.float() - bias) / norms**tau + bias


class Calibration:
    """One calibration at one strength. Its methods change nothing unless it overrides them.

    Attributes:
        strength: a number of at least 0; 0 changes nothing.
        needs_counts: whether it goes by the image counts of the classes.
        linear_only: whether it is for a linear classifier alone.
    """

    needs_counts = False
    linear_only = False

    def __init__(self, strength: float):
        """
        Raises:
            ValueError: the strength is below 0.
        """
        if not strength >= 0:
            raise ValueError(f"The strength of a calibration is at least 0: {strength} is not.")
        self.strength = strength

    def logits(self, logits: Tensor, layer: nn.Module, num_classes: int) -> Tensor:
        """What the classifier predicts, (N, K) or (N, K + 1), calibrated by its weights."""
        return logits

    def log_odds(self, log_odds: Tensor, class_counts: Tensor | None) -> Tensor:
        """The log-odds of the scores, (N, K + 1), calibrated by the counts of the classes."""
        return log_odds


@CALIBRATION_REGISTRY.register()
class NorCal(Calibration):
    """:func:`nor_cal`; the strength is γ."""

    needs_counts = True

    def log_odds(self, log_odds: Tensor, class_counts: Tensor | None) -> Tensor:
        return nor_cal(log_odds, class_counts, self.strength)


@CALIBRATION_REGISTRY.register()
class LogitAdjustment(Calibration):
    """:func:`logit_adjustment`; the strength is τ."""

    needs_counts = True

    def log_odds(self, log_odds: Tensor, class_counts: Tensor | None) -> Tensor:
        return logit_adjustment(log_odds, class_counts, self.strength)


@CALIBRATION_REGISTRY.register()
class TauNorm(Calibration):
    """:func:`tau_norm`; the strength is τ. A normed classifier has no norms left to divide by."""

    linear_only = True

    def logits(self, logits: Tensor, layer: nn.Module, num_classes: int) -> Tensor:
        return tau_norm(logits, layer.weight, layer.bias, num_classes, self.strength)
