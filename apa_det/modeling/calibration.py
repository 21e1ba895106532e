"""Post-hoc calibration of class scores by class frequency."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..data.class_counts import check_num_classes, class_counts
from ..data.fractal_dimension import shares_and_dimensions
from ..errors import UserError

FRACAL_EXPONENT = 2.0  # λ of the published detectors

CALIBRATION_REGISTRY = Registry("CALIBRATION")
CALIBRATION_REGISTRY.__doc__ = """
Calibrations of the class scores of box predictors and dense detectors in inference.

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


def fracal(logits: Tensor, shares: Tensor, dimensions: Tensor, strength: float) -> Tensor:
    """FRACAL of a softmax: φ_c + w_c − λ log Φ_c, with w_c = log10(1 / K) − log10 p_c and λ = 2.

    "Fractal Calibration for long-tailed object detection" (Alexandridis et al., CVPR 2025). p_c is
    the share of the training images that contain class c; 1 / K is the uniform share that replaces
    it. Φ_c is the fractal dimension of the class: the paper divides its probability by Φ_c^λ and
    renormalizes, which is the same. The background keeps its logit.

    Args:
        logits: shape (N, K + 1), background last.
        shares: shape (K,), p_c > 0.
        dimensions: shape (K,), Φ_c >= 1; see
            :func:`apa_det.data.fractal_dimension.fractal_dimensions`.
        strength: factor of w and λ; 0 changes nothing, 1 is the published calibration.

    Returns:
        float32, shape (N, K + 1).
    """
    adjustment = _frequency_term(shares) - FRACAL_EXPONENT * dimensions.float().log()
    return logits.float() + strength * F.pad(adjustment, (0, 1))


def fracal_binary(log_odds: Tensor, shares: Tensor, dimensions: Tensor, strength: float) -> Tensor:
    """FRACAL of binary scores: σ(z) · σ(z + w + f), as log-odds.

    f_c = log10(1 / K) − log10(Φ_c^λ / Σ_k Φ_k^λ); w, λ and the strength are those of
    :func:`fracal`. The paper has sigmoid scores. Here z is also the log-odds of Gumbel and APA
    scores, and the second factor has the strength as its exponent, so that 0 changes nothing.

    Args:
        log_odds: shape (N, K + 1); the last column is ignored.
        shares, dimensions, strength: as for :func:`fracal`.

    Returns:
        float32, shape (N, K + 1).
    """
    z = log_odds.float()
    if not strength:
        return z
    log_weights = (strength * FRACAL_EXPONENT * dimensions.float().log()).log_softmax(dim=0)
    location_term = -log_weights / math.log(10) - math.log10(len(shares))
    adjustment = F.pad(strength * _frequency_term(shares) + location_term, (0, 1))
    minus_log = F.softplus(-z) + strength * F.softplus(-z - adjustment)
    return -minus_log - torch.log(-torch.expm1(-minus_log))


def _frequency_term(shares: Tensor) -> Tensor:
    return -shares.float().log10() - math.log10(len(shares))


class Calibration:
    """Base class of calibrations. Subclasses override the methods that they need.

    Args:
        strength: >= 0; 0 changes nothing.

    Raises:
        UserError: the strength is negative.
    """

    needs_counts = False  # uses class_values
    linear_only = False  # supports linear classifiers only

    def __init__(self, strength: float):
        if not strength >= 0:
            key = "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH"
            raise UserError(f"{key} must be >= 0, got {strength}.")
        self.strength = strength

    @classmethod
    def class_values(cls, dataset_names: Sequence[str]) -> Tensor:
        """Return what the calibration needs to know of the training datasets.

        Args:
            dataset_names: registered datasets with the same classes, already loaded.

        Returns:
            Shape (K, ...), by contiguous id: by default the image counts, (K,).

        Raises:
            UserError: the datasets do not provide the values.
        """
        return class_counts(dataset_names)

    def logits(self, logits: Tensor, layer: nn.Module, num_classes: int) -> Tensor:
        """Return calibrated logits, (N, K) or (N, K + 1), given the layer that predicted them."""
        return logits

    def log_odds(self, log_odds: Tensor, class_values: Tensor | None) -> Tensor:
        """Return calibrated softmax logits, (N, K + 1), given :meth:`class_values`."""
        return log_odds

    def binary_log_odds(self, log_odds: Tensor, class_values: Tensor | None) -> Tensor:
        """Return calibrated log-odds of sigmoid, Gumbel and APA scores: by default the same."""
        return self.log_odds(log_odds, class_values)


@CALIBRATION_REGISTRY.register()
class NorCal(Calibration):
    """:func:`nor_cal`; the strength is γ."""

    needs_counts = True

    def log_odds(self, log_odds: Tensor, class_values: Tensor | None) -> Tensor:
        return nor_cal(log_odds, class_values, self.strength)


@CALIBRATION_REGISTRY.register()
class LogitAdjustment(Calibration):
    """:func:`logit_adjustment`; the strength is τ."""

    needs_counts = True

    def log_odds(self, log_odds: Tensor, class_values: Tensor | None) -> Tensor:
        return logit_adjustment(log_odds, class_values, self.strength)


@CALIBRATION_REGISTRY.register()
class TauNorm(Calibration):
    """:func:`tau_norm`; the strength is τ. Normed classifiers have no norms to divide by."""

    linear_only = True

    def logits(self, logits: Tensor, layer: nn.Module, num_classes: int) -> Tensor:
        return tau_norm(logits, layer.weight, layer.bias, num_classes, self.strength)


@CALIBRATION_REGISTRY.register()
class FRACAL(Calibration):
    """:func:`fracal` and :func:`fracal_binary`; a strength of 1 is the published calibration."""

    needs_counts = True

    @classmethod
    def class_values(cls, dataset_names: Sequence[str]) -> Tensor:
        return shares_and_dimensions(dataset_names)

    def log_odds(self, log_odds: Tensor, class_values: Tensor | None) -> Tensor:
        return fracal(log_odds, *class_values.unbind(1), self.strength)

    def binary_log_odds(self, log_odds: Tensor, class_values: Tensor | None) -> Tensor:
        return fracal_binary(log_odds, *class_values.unbind(1), self.strength)


def build_calibration(
    name: str, strength: float, node: str = "MODEL.ROI_BOX_HEAD"
) -> Calibration | None:
    """Build a calibration; None for the name "".

    Args:
        name: a name in :data:`CALIBRATION_REGISTRY`, or "".
        strength: see :class:`Calibration`.
        node: of the config keys, for messages.

    Raises:
        UserError: the name is unknown, the strength is negative, or it has no effect.
    """
    if not name:
        if strength:
            raise UserError(
                f"{node}.CALIBRATION_STRENGTH {strength} has no effect without {node}.CALIBRATION. "
                "Set both, or leave the strength at 0."
            )
        return None
    if name not in CALIBRATION_REGISTRY:
        known = ", ".join(sorted(name for name, _ in CALIBRATION_REGISTRY))
        raise UserError(f"{node}.CALIBRATION must be one of {known}; got {name!r}.")
    return CALIBRATION_REGISTRY.get(name)(strength)


class ClassValues:
    """The class values of calibrations, looked up when they are first needed."""

    def __init__(self, datasets: Sequence[str]):
        """Args: datasets: registered training datasets."""
        self.datasets = datasets
        self._values: dict[type, Tensor] = {}

    def get(
        self, calibration: Calibration, num_classes: int, device: torch.device
    ) -> Tensor | None:
        """Return the values of a calibration, shape (K, ...); None if it needs none.

        Args:
            calibration: the calibration.
            num_classes: K.
            device: of the result.

        Raises:
            UserError: they are unknown, or of another number of classes.
        """
        kind = type(calibration)
        if not kind.needs_counts:
            return None
        if kind not in self._values:
            values = kind.class_values(self.datasets)
            user = f"The calibration {kind.__name__}"
            self._values[kind] = check_num_classes(values, num_classes, user)
        self._values[kind] = self._values[kind].to(device)
        return self._values[kind]
