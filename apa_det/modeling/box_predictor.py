"""A box predictor whose class score is APA, its Gumbel limit, or detectron2's own."""

import math
from collections.abc import Callable, Sequence
from typing import List  # noqa: UP035

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats
from detectron2.structures import Instances
from torch import Tensor, nn

from ..activation import APA, logit_apa
from ..data.class_counts import class_counts
from ..kernels import eager
from ..layers import NormedLinear, WrappedCauchyLinear
from .calibration import CALIBRATION_REGISTRY, Calibration
from .losses import (
    SIGMOID,
    BoxClassLoss,
    CrossEntropy,
    Curve,
    FederatedLoss,
    build_box_class_loss,
)

__all__ = ["APAFastRCNNOutputLayers"]

CLASS_SCORES = ("softmax", "sigmoid", "gumbel", "apa")
PREDICTORS = ("linear", "normed", "wrapped_cauchy")


class APAFastRCNNOutputLayers(FastRCNNOutputLayers):
    """detectron2's box predictor with a choice of class scores and of their loss.

    "softmax" and "sigmoid" are detectron2's. "apa" is η(z; λ, κ) with learned λ and κ, "gumbel" its
    limit e^(−e^(−z)) (Alexandridis et al., ECCV 2024, and "Long-tailed Instance Segmentation using
    Gumbel Optimized Loss", ECCV 2022). These two predict no background; to detectron2's test-time
    filtering they are handed on as their log-odds, whose sigmoid they are.
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
        predictor: str = "linear",
        predictor_temperature: float = 20.0,
        predictor_learn_temperature: bool = False,
        predictor_weight_init: float | None = None,
        predictor_bias_init: float | None = None,
        logit_clamp: float = 0.0,
        class_loss: BoxClassLoss | None = None,
        use_fed_loss: bool = False,
        get_fed_loss_cls_weights: Callable[[], Tensor] | None = None,
        fed_loss_num_classes: int = 50,
        calibration: str = "",
        calibration_strength: float = 0.0,
        calibration_datasets: str | Sequence[str] = (),
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
            predictor: the layer that predicts the classes: "linear", "normed"
                (:class:`apa_det.layers.NormedLinear`) or "wrapped_cauchy"
                (:class:`apa_det.layers.WrappedCauchyLinear`).
            predictor_temperature, predictor_learn_temperature: of the normed predictor.
            predictor_weight_init, predictor_bias_init: constants that its weights and biases start
                from. None: weights are drawn, biases are 0 or follow ``score_prior``.
            logit_clamp: in training, what that layer predicts is clamped to ± this; 0: it is not.
            class_loss: the loss of the class scores, one of :mod:`apa_det.modeling.losses`. None:
                :class:`apa_det.modeling.losses.CrossEntropy`, detectron2's own for its scores.
            use_fed_loss, get_fed_loss_cls_weights, fed_loss_num_classes: as in detectron2; they
                stand for the class loss :class:`apa_det.modeling.losses.FederatedLoss`.
            calibration: of the scores in inference: a name in ``CALIBRATION_REGISTRY``; "": none.
            calibration_strength: its γ or τ, at least 0.
            calibration_datasets: the registered training datasets, for a calibration by their image
                counts. They are looked at in the first inference, and must have been read by then.
            kwargs: as for :class:`detectron2.modeling.roi_heads.FastRCNNOutputLayers`, without
                ``use_sigmoid_ce``.

        Raises:
            ValueError: an unknown class score, predictor or calibration, a range, prior,
                temperature, clamp or strength out of bounds, a class loss for other class scores or
                of other classes, or a calibration for linear classifiers with another.
        """
        if class_score not in CLASS_SCORES:
            raise ValueError(
                f"Unknown class score {class_score!r}: choose one of {', '.join(CLASS_SCORES)}."
            )
        if predictor not in PREDICTORS:
            raise ValueError(
                f"Unknown predictor {predictor!r}: choose one of {', '.join(PREDICTORS)}."
            )
        if logit_clamp < 0:
            raise ValueError(f"The clamp of the logits is at least 0: {logit_clamp} is not.")
        super().__init__(
            input_shape,
            num_classes=num_classes,
            use_sigmoid_ce=class_score != "softmax",
            **kwargs,
        )
        self.class_score = class_score
        self.logit_clamp = logit_clamp
        if use_fed_loss and class_loss is not None:
            raise ValueError("Give use_fed_loss or a class_loss, not both.")
        if use_fed_loss:
            class_loss = FederatedLoss(
                num_classes,
                get_fed_loss_cls_weights=get_fed_loss_cls_weights,
                fed_loss_num_classes=fed_loss_num_classes,
            )
        self.class_loss = CrossEntropy(num_classes) if class_loss is None else class_loss
        self.calibration = _build_calibration(calibration, calibration_strength, predictor)
        if isinstance(calibration_datasets, str):
            calibration_datasets = [calibration_datasets]
        self.calibration_datasets = calibration_datasets
        self._class_counts: Tensor | None = None
        self._check_class_loss()

        self.score = None
        has_apa = self.predicts_apa
        num_outputs = num_classes if has_apa else num_classes + 1
        sizes = self.cls_score.in_features, self.class_loss.num_outputs or num_outputs
        if predictor == "normed":
            self.cls_score = NormedLinear(
                *sizes,
                temperature=predictor_temperature,
                learn_temperature=predictor_learn_temperature,
            )
        elif predictor == "wrapped_cauchy":
            self.cls_score = WrappedCauchyLinear(*sizes)
        elif sizes[1] != num_classes + 1:
            self.cls_score = nn.Linear(*sizes)
            nn.init.normal_(self.cls_score.weight, std=0.01)
            nn.init.zeros_(self.cls_score.bias)
        if class_score == "apa":
            if score_kappa_range[0] <= 0:
                raise ValueError(f"κ of the class score starts above 0: {score_kappa_range} not.")
            self.score = APA(
                num_classes if score_per_class else None,
                lambda_range=score_lambda_range,
                kappa_range=score_kappa_range,
                lambda_min=score_lambda_min,
            )
        if has_apa:
            self._set_prior(score_prior)
        if predictor_weight_init is not None:
            nn.init.constant_(self.cls_score.weight, predictor_weight_init)
        if predictor_bias_init is not None:
            nn.init.constant_(self.cls_score.bias, predictor_bias_init)

    def _check_class_loss(self) -> None:
        name, loss = type(self.class_loss).__name__, self.class_loss
        if self.class_score not in loss.class_scores:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CLASS_LOSS {name} goes with the class scores "
                f"{', '.join(loss.class_scores)}, and MODEL.ROI_BOX_HEAD.CLASS_SCORE is "
                f"{self.class_score}: choose another of the two."
            )
        if loss.num_classes != self.num_classes:
            raise ValueError(
                f"The class loss {name} is for {loss.num_classes} classes, and the predictor for "
                f"{self.num_classes}."
            )
        if loss.num_outputs and self.calibration is not None:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CALIBRATION does not go together with the CLASS_LOSS {name}, "
                "which balances the scores itself: leave one of the two out."
            )

    def _set_prior(self, score_prior: float) -> None:
        if not 0 < score_prior < 1:
            raise ValueError(f"The prior class score lies in (0, 1): {score_prior} does not.")
        bias = self.cls_score.bias
        if self.class_score == "apa":
            lambda_, kappa = self.score.parameters_for(bias[None])
        else:
            lambda_, kappa = torch.tensor(0.0), torch.tensor(1.0)
        with torch.no_grad():
            bias += _inverse_apa(score_prior, lambda_, kappa).flatten()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.CLASS_SCORE == "softmax" and head.USE_SIGMOID_CE:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.CLASS_SCORE softmax contradicts "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True: set one of them otherwise."
            )
        args = super().from_config(cfg, input_shape)
        for name in ("use_fed_loss", "get_fed_loss_cls_weights", "fed_loss_num_classes"):
            args.pop(name, None)
        default = "sigmoid" if args.pop("use_sigmoid_ce") else "softmax"
        return {
            **args,
            "class_score": head.CLASS_SCORE or default,
            "score_per_class": head.SCORE_PER_CLASS,
            "score_lambda_range": tuple(head.SCORE_LAMBDA_RANGE),
            "score_kappa_range": tuple(head.SCORE_KAPPA_RANGE),
            "score_lambda_min": cfg.MODEL.APA.LAMBDA_MIN,
            "score_prior": head.SCORE_PRIOR,
            "predictor": head.PREDICTOR,
            "predictor_temperature": head.PREDICTOR_TEMPERATURE,
            "predictor_learn_temperature": head.PREDICTOR_LEARN_TEMPERATURE,
            "predictor_weight_init": head.PREDICTOR_WEIGHT_INIT,
            "predictor_bias_init": head.PREDICTOR_BIAS_INIT,
            "logit_clamp": head.LOGIT_CLAMP,
            "class_loss": build_box_class_loss(cfg),
            "calibration": head.CALIBRATION,
            "calibration_strength": head.CALIBRATION_STRENGTH,
            "calibration_datasets": cfg.DATASETS.TRAIN if head.CALIBRATION else (),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: box features of shape (N, ...).

        Returns:
            Scores: logits of shape (N, K) for "gumbel" and "apa", (N, K + 1) for the others, or
            what the class loss asks for. Box deltas of shape (N, 4K), or (N, 4) if class-agnostic.
        """
        if x.dim() > 2:
            x = x.flatten(1)
        scores, deltas = self.cls_score(x), self.bbox_pred(x)
        if self.training and self.logit_clamp:
            scores = scores.clamp(-self.logit_clamp, self.logit_clamp)
        return scores, deltas

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """As in detectron2.

        Raises:
            ValueError: the training datasets do not tell what the class loss needs.
        """
        logits, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        _log_classification_stats(self._with_background(logits.detach()), gt_classes)
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # Pictures without annotations have no gt_boxes, and no foreground to regress.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        losses = {
            "loss_cls": self._loss_of_classes(logits, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _loss_of_classes(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if self.class_score == "softmax":
            return self.class_loss(logits, gt_classes, None)
        return self.class_loss(logits[:, : self.num_classes], gt_classes, self._curve(logits))

    def _with_background(self, logits: Tensor) -> Tensor:
        """Of shape (N, K + 1), the largest of which is the class that is predicted."""
        if self.class_loss.num_outputs:
            return self.class_loss.probabilities(logits)
        return self._log_odds(logits) if self.predicts_apa else logits

    def predict_probs(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: List[Instances],  # noqa: UP006
    ):
        """As in detectron2, or calibrated.

        Raises:
            ValueError: a calibration's image counts are unknown, or of another number of classes.
        """
        probabilities = self._probabilities(predictions[0])
        # len() of proposals would be a constant to torch.jit.trace
        return probabilities.split([p.proposal_boxes.tensor.shape[0] for p in proposals])

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Of shape (N, K + 1). torch.jit.script sees neither class losses nor calibrations."""
        if not torch.jit.is_scripting():
            if self.class_loss.num_outputs:
                return self.class_loss.probabilities(logits)
            if self.calibration is not None:
                logits = self.calibration.logits(logits, self.cls_score, self.num_classes)
        if self.predicts_apa:
            logits = self._log_odds(logits)
        if not torch.jit.is_scripting():
            if self.calibration is not None:
                counts = self._counts(logits.device) if self.calibration.needs_counts else None
                logits = self.calibration.log_odds(logits, counts)
        return logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)

    def _counts(self, device: torch.device) -> Tensor:
        """The image counts that a calibration goes by, looked up once."""
        if self._class_counts is None:
            counts = class_counts(self.calibration_datasets)
            if counts.shape != (self.num_classes,):
                raise ValueError(
                    f"The calibration got the image counts of {len(counts)} classes for a "
                    f"predictor of {self.num_classes}: MODEL.ROI_HEADS.NUM_CLASSES has to be that "
                    "of the training dataset."
                )
            self._class_counts = counts
        self._class_counts = self._class_counts.to(device)
        return self._class_counts

    @property
    def predicts_apa(self) -> bool:
        return self.class_score in ["gumbel", "apa"]

    def _curve(self, logits: Tensor) -> Curve:
        """λ and κ of the class score, unless it is softmax."""
        if self.class_score == "apa":
            return self.score.parameters_for(logits)
        return SIGMOID if self.class_score == "sigmoid" else (0.0, 1.0)

    def _log_odds(self, logits: Tensor) -> Tensor:
        """Of each class's score, and 0 for the background: float32, shape (N, K + 1)."""
        logits = logits.float()
        if torch.jit.is_scripting():
            lambda_, kappa = logits.new_zeros(1), logits.new_ones(1)
            if self.score is not None:
                lambda_, kappa = self.score.parameters_for(logits)
            log_odds = eager.evaluate("logit_apa", logits, lambda_, kappa)
        else:
            log_odds = logit_apa(logits, *self._curve(logits))
        return F.pad(log_odds, (0, 1))


def _build_calibration(name: str, strength: float, predictor: str) -> Calibration | None:
    if not name:
        if strength:
            raise ValueError(
                f"A calibration strength of {strength} has no effect without a calibration "
                "(MODEL.ROI_BOX_HEAD.CALIBRATION): name one, or leave it at 0."
            )
        return None
    if name not in CALIBRATION_REGISTRY:
        known = ", ".join(sorted(name for name, _ in CALIBRATION_REGISTRY))
        raise ValueError(f"Unknown calibration {name!r}: choose one of {known}.")
    calibration = CALIBRATION_REGISTRY.get(name)(strength)
    if calibration.linear_only and predictor != "linear":
        raise ValueError(
            f"The calibration {name} is for the linear predictor: the {predictor} one does not go "
            "by the norms of its weights."
        )
    return calibration


def _inverse_apa(probability: float, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """The z with η(z; λ, κ) = probability."""
    log_p = math.log(probability)
    e = torch.where(lambda_ > 0, torch.expm1(-lambda_ * log_p) / lambda_, -log_p)
    return -e.log() / kappa
