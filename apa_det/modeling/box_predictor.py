"""A box predictor whose class score is APA, its Gumbel limit, or detectron2's own."""

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from ..activation import APA, logit_apa

__all__ = ["APAFastRCNNOutputLayers"]

CLASS_SCORES = ("softmax", "sigmoid", "gumbel", "apa")


class APAFastRCNNOutputLayers(FastRCNNOutputLayers):
    """detectron2's box predictor with a choice of class scores.

    "softmax" and "sigmoid" are detectron2's. "apa" is η(z; λ, κ) with learned λ and κ, "gumbel" its
    limit e^(−e^(−z)) (Alexandridis et al., ECCV 2024, and "Long-tailed Instance Segmentation using
    Gumbel Optimized Loss", ECCV 2022). These two predict no background, and are handed on as
    their log-odds, so that sigmoid scores, binary cross-entropy, federated loss and test-time
    filtering are detectron2's.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        class_score: str = "softmax",
        score_per_class: bool = False,
        score_lambda_range: tuple[float, float] = (1.0, 1.0),
        score_kappa_range: tuple[float, float] = (1.0, 1.0),
        score_lambda_min: float = 1e-4,
        score_prior: float = 0.01,
        **kwargs,
    ):
        """
        Args:
            input_shape: shape of the box features.
            num_classes: K, the number of foreground classes.
            class_score: "softmax", "sigmoid", "gumbel" or "apa".
            score_per_class: for "apa", a λ and κ for each class instead of one pair.
            score_lambda_range, score_kappa_range, score_lambda_min: see
                :class:`apa_det.activation.APA`; κ must start above 0.
            score_prior: for "gumbel" and "apa", the score, in (0, 1), that every class has for zero
                features at the start.
            kwargs: as for :class:`detectron2.modeling.roi_heads.FastRCNNOutputLayers`, without
                ``use_sigmoid_ce``.

        Raises:
            ValueError: an unknown class score, or a range or prior out of bounds.
        """
        if class_score not in CLASS_SCORES:
            raise ValueError(
                f"Unknown class score {class_score!r}: choose one of {', '.join(CLASS_SCORES)}."
            )
        super().__init__(
            input_shape,
            num_classes=num_classes,
            use_sigmoid_ce=class_score != "softmax",
            **kwargs,
        )
        self.class_score = class_score
        if class_score not in ("gumbel", "apa"):
            return
        if not 0 < score_prior < 1:
            raise ValueError(f"The prior class score lies in (0, 1): {score_prior} does not.")
        self.cls_score = nn.Linear(self.cls_score.in_features, num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        lambda_, kappa = torch.tensor(0.0), torch.tensor(1.0)
        if class_score == "apa":
            if score_kappa_range[0] <= 0:
                raise ValueError(f"κ of the class score starts above 0: {score_kappa_range} not.")
            self.score = APA(
                num_classes if score_per_class else None,
                lambda_range=score_lambda_range,
                kappa_range=score_kappa_range,
                lambda_min=score_lambda_min,
            )
            lambda_, kappa = self.score.parameters_for(self.cls_score.bias[None])
        nn.init.zeros_(self.cls_score.bias)
        with torch.no_grad():
            self.cls_score.bias += _inverse_apa(score_prior, lambda_, kappa).flatten()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.CLASS_SCORE == "softmax" and head.USE_SIGMOID_CE:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.CLASS_SCORE softmax contradicts "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True: set one of them otherwise."
            )
        args = super().from_config(cfg, input_shape)
        default = "sigmoid" if args.pop("use_sigmoid_ce") else "softmax"
        return {
            **args,
            "class_score": head.CLASS_SCORE or default,
            "score_per_class": head.SCORE_PER_CLASS,
            "score_lambda_range": tuple(head.SCORE_LAMBDA_RANGE),
            "score_kappa_range": tuple(head.SCORE_KAPPA_RANGE),
            "score_lambda_min": cfg.MODEL.APA.LAMBDA_MIN,
            "score_prior": head.SCORE_PRIOR,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: box features of shape (N, ...).

        Returns:
            Scores of shape (N, K + 1): logits, or for "gumbel" and "apa" the log-odds of each
            class's score in float32, and 0 for the background. Box deltas of shape (N, 4K), or
            (N, 4) if class-agnostic.
        """
        scores, deltas = super().forward(x)
        if self.class_score == "gumbel":
            log_odds = logit_apa(scores.float(), 0.0, 1.0)
        elif self.class_score == "apa":
            log_odds = logit_apa(scores.float(), *self.score.parameters_for(scores))
        else:
            return scores, deltas
        return F.pad(log_odds, (0, 1)), deltas


def _inverse_apa(probability: float, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """The z with η(z; λ, κ) = probability."""
    log_p = math.log(probability)
    e = torch.where(lambda_ > 0, torch.expm1(-lambda_ * log_p) / lambda_, -log_p)
    return -e.log() / kappa
