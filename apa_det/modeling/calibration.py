"""Post-hoc calibration of class scores by class frequency."""

import torch
import torch.nn.functional as F
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..errors import UserError

CALIBRATION_REGISTRY = Registry("CALIBRATION")
CALIBRATION_REGISTRY.__doc__ = """
Calibrations of the class scores of :class:`APAFastRCNNOutputLayers` in inference.

Each is built with its strength; see :class:`Calibration`.
"""


def nor_cal(log_odds: Tensor, class_counts: Tensor, gamma: float) -> Tensor:
    """NorCal: divide the odds of each class against the background by a_c = N_c^γ.

    "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation" (Pan et al.,
    NeurIPS 2021). After the softmax, the score is (e^φ_c / a_c) / (Σ_k e^φ_k / a_k + e^φ_bg); the
    background is not divided. Binary scores (sigmoid, Gumbel, APA) each have their own background:
    their calibrated score is (s_c / a_c) / (s_c / a_c + 1 − s_c).

    Args:
        log_odds: shape (N, K + 1): softmax logits, background last; or log-odds of binary scores,
            whose last column is ignored.
        class_counts: shape (K,), the number of training images N_c per class. Zero counts are
            treated as 1.
        gamma: γ; 0 changes nothing.

    Returns:
        float32, shape (N, K + 1).
    """
    log_counts = class_counts.clamp(min=1).float().log()
    return log_odds.float() - gamma * F.pad(log_counts, (0, 1))


def logit_adjustment(log_odds: Tensor, class_counts: Tensor, tau: float) -> Tensor:
    """Post-hoc logit adjustment: φ_c − τ log π_c.

    "Long-tail learning via logit adjustment" (Menon et al., ICLR 2021), equation 9. π_c is the
    share of class c in the training set, N_c / Σ_k N_k. The background has no π and keeps its
    logit, so every class gains τ log Σ_k N_k on it compared with :func:`nor_cal`.

    Args:
        log_odds, class_counts: as for :func:`nor_cal`.
        tau: τ; 0 changes nothing.

    Returns:
        float32, shape (N, K + 1).
    """
    counts = class_counts.clamp(min=1).float()
    return log_odds.float() - tau * F.pad((counts / counts.sum()).log(), (0, 1))


def tau_norm(logits: Tensor, weight: Tensor, bias: Tensor, num_classes: int, tau: float) -> Tensor:
    """τ-normalization of a linear classifier: replace w_c by w_c / ‖w_c‖^τ in its logits.

    "Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020),
    equation 5. The paper's classifier has no bias and no background; here, biases and the row of
    the background are not changed.

    Args:
        logits: shape (N, C), the layer's output w_c · x + b_c.
        weight, bias: shape (C, D) and (C,).
        num_classes: K; rows from K on are not classes.
        tau: τ; 0 changes nothing.

    Returns:
        float32, shape (N, C).
    """
    norms = weight.float().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    norms = torch.where(torch.arange(len(norms), device=norms.device) < num_classes, norms, 1.0)
    return (logits.float() - bias) / norms**tau + bias


class Calibration:
    """Base class of calibrations. Subclasses override the method that they need.

    Args:
        strength: >= 0; 0 changes nothing.

    Raises:
        UserError: the strength is negative.
    """

    needs_counts = False  # uses the image counts of the classes
    linear_only = False  # supports linear classifiers only

    def __init__(self, strength: float):
        if not strength >= 0:
            key = "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH"
            raise UserError(f"{key} must be >= 0, got {strength}.")
        self.strength = strength

    def logits(self, logits: Tensor, layer: nn.Module, num_classes: int) -> Tensor:
        """Return calibrated logits, (N, K) or (N, K + 1), given the layer that predicted them."""
        return logits

    def log_odds(self, log_odds: Tensor, class_counts: Tensor | None) -> Tensor:
        """Return calibrated log-odds, (N, K + 1), given the image counts of the classes."""
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
    """:func:`tau_norm`; the strength is τ. Normed classifiers have no norms to divide by."""

    linear_only = True

    def logits(self, logits: Tensor, layer: nn.Module, num_classes: int) -> Tensor:
        return tau_norm(logits, layer.weight, layer.bias, num_classes, self.strength)
