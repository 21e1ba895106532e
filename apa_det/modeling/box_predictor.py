"""Box predictor with APA, Gumbel, sigmoid or softmax class scores."""

from collections.abc import Callable, Sequence
from typing import List, Tuple  # noqa: UP035

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import (
    _log_classification_stats,
    fast_rcnn_inference,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from ..activation import logit_apa
from ..errors import UserError
from ..kernels import eager
from ..layers import NormedLinear, WrappedCauchyLinear
from .box_head import init_linear
from .calibration import ClassValues, build_calibration
from .class_scores import build_apa_score, curve_of, set_prior_bias
from .feature_replay import FeatureReplay, build_feature_replay
from .losses import BoxClassLoss, CrossEntropy, FederatedLoss, build_box_class_loss
from .postprocessing import ARGUMENTS, PostProcessing, postprocessing_arguments

CLASS_SCORES = ("softmax", "sigmoid", "gumbel", "apa")
PREDICTORS = ("linear", "normed", "wrapped_cauchy")


class APAFastRCNNOutputLayers(FastRCNNOutputLayers):
    """detectron2's box predictor with configurable class scores and class loss.

    "softmax" and "sigmoid" are detectron2's. "apa" is η(z; λ, κ) with learned λ and κ, "gumbel" its
    limit e^(−e^(−z)) (Alexandridis et al., ECCV 2024, and "Long-tailed Instance Segmentation using
    Gumbel Optimized Loss", ECCV 2022). These two have no background output. In inference they are
    converted to log-odds, whose sigmoid is the score, so that detectron2's filtering applies.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        class_score: str = "softmax",
        background_output: bool = True,
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
        init: str = "detectron2",
        logit_clamp: float = 0.0,
        class_loss: BoxClassLoss | None = None,
        replay: FeatureReplay | None = None,
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
            num_classes: K, the number of foreground classes.
            class_score: "softmax", "sigmoid", "gumbel" or "apa".
            background_output: for "sigmoid", have detectron2's output of the background, which is
                not used. False: K outputs, as in mmdetection.
            score_per_class: for "apa", learn λ and κ per class instead of one shared pair.
            score_lambda_range, score_kappa_range, score_lambda_min: see
                :class:`apa_det.activation.APA`; the initial κ must be positive.
            score_prior: for "gumbel" and "apa", the initial score of every class for zero
                features; in (0, 1).
            predictor: the classification layer: "linear", "normed"
                (:class:`apa_det.layers.NormedLinear`) or "wrapped_cauchy"
                (:class:`apa_det.layers.WrappedCauchyLinear`).
            predictor_temperature, predictor_learn_temperature: only for the normed predictor.
            predictor_weight_init, predictor_bias_init: constants that initialize the classification
                layer. None: random weights, and biases of 0 or from ``score_prior``.
            init: initialization of the box regression: "detectron2" or "xavier" (both a normal
                distribution), or "torch", as :class:`torch.nn.Linear` does.
            logit_clamp: in training, clamp logits to ± this value; 0: no clamping.
            class_loss: one of :mod:`apa_det.modeling.losses`. None:
                :class:`apa_det.modeling.losses.CrossEntropy`.
            replay: adds features of scarce classes to the class loss. None: none.
            use_fed_loss, get_fed_loss_cls_weights, fed_loss_num_classes: as in detectron2; they
                select the class loss :class:`apa_det.modeling.losses.FederatedLoss`.
            calibration: calibration of the scores in inference, a name in
                ``CALIBRATION_REGISTRY``. "": none.
            calibration_strength: strength of the calibration, e.g. γ or τ; >= 0.
            calibration_datasets: registered training datasets that provide the ``class_values`` of
                the calibration. They are first needed in inference, and must be loaded by then.
            kwargs: those of :class:`detectron2.modeling.roi_heads.FastRCNNOutputLayers`, without
                ``use_sigmoid_ce``; and those of
                :class:`apa_det.modeling.postprocessing.PostProcessing`.

        Raises:
            UserError: a name is unknown, a value is out of range, the class loss does not support
                the class score or the number of classes, the replay has another number of classes,
                or the calibration does not support the predictor or the class loss.
        """
        for key, name, choices in (
            ("CLASS_SCORE", class_score, CLASS_SCORES),
            ("PREDICTOR", predictor, PREDICTORS),
        ):
            if name not in choices:
                key, known = f"MODEL.ROI_BOX_HEAD.{key}", ", ".join(choices)
                raise UserError(f"{key} must be one of {known}; got {name!r}.")
        if logit_clamp < 0:
            raise UserError(f"MODEL.ROI_BOX_HEAD.LOGIT_CLAMP must be >= 0, got {logit_clamp}.")
        own = {name: kwargs.pop(name) for name in ARGUMENTS if name in kwargs}
        super().__init__(
            input_shape, num_classes=num_classes, use_sigmoid_ce=class_score != "softmax", **kwargs
        )
        self.postprocessing = PostProcessing(num_classes, **own)
        self.class_score, self.logit_clamp = class_score, logit_clamp
        self.background_output = background_output
        if init == "torch":
            init_linear(self.bbox_pred, init)
        if use_fed_loss and class_loss is not None:
            raise UserError("Give either use_fed_loss or class_loss, not both.")
        if use_fed_loss:
            class_loss = FederatedLoss(
                num_classes,
                get_fed_loss_cls_weights=get_fed_loss_cls_weights,
                fed_loss_num_classes=fed_loss_num_classes,
            )
        self.class_loss = CrossEntropy(num_classes) if class_loss is None else class_loss
        if replay is not None and replay.num_classes != num_classes:
            raise UserError(
                f"The replay has {replay.num_classes} classes, but the predictor has "
                f"{num_classes}. Use the same number."
            )
        self.replay = replay
        self.calibration = build_calibration(calibration, calibration_strength)
        is_one = isinstance(calibration_datasets, str)
        self.calibration_datasets = [calibration_datasets] if is_one else calibration_datasets
        self._class_values = ClassValues(self.calibration_datasets)
        self._check_calibration(predictor)
        self._check_class_loss()

        num_outputs = self.class_loss.num_outputs or num_classes + self._has_background
        sizes = self.cls_score.in_features, num_outputs
        if predictor == "normed":
            self.cls_score = NormedLinear(
                *sizes,
                temperature=predictor_temperature,
                learn_temperature=predictor_learn_temperature,
            )
        elif predictor == "wrapped_cauchy":
            self.cls_score = WrappedCauchyLinear(*sizes)
        elif num_outputs != num_classes + 1:
            self.cls_score = nn.Linear(*sizes)
            nn.init.normal_(self.cls_score.weight, std=0.01)
            nn.init.zeros_(self.cls_score.bias)
        self.score = build_apa_score(
            class_score,
            num_classes if score_per_class else None,
            score_lambda_range,
            score_kappa_range,
            score_lambda_min,
        )
        if self.predicts_apa:
            if not 0 < score_prior < 1:
                key = "MODEL.ROI_BOX_HEAD.SCORE_PRIOR"
                raise UserError(f"{key} must be in (0, 1), got {score_prior}.")
            set_prior_bias(self.cls_score.bias, class_score, self.score, score_prior)
        if predictor_weight_init is not None:
            nn.init.constant_(self.cls_score.weight, predictor_weight_init)
        if predictor_bias_init is not None:
            nn.init.constant_(self.cls_score.bias, predictor_bias_init)

    def _check_class_loss(self) -> None:
        name, loss = type(self.class_loss).__name__, self.class_loss
        if self.class_score not in loss.class_scores:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.CLASS_LOSS {name} supports the class scores "
                f"{', '.join(loss.class_scores)}, but MODEL.ROI_BOX_HEAD.CLASS_SCORE is "
                f"{self.class_score}. Change one of the two."
            )
        if loss.num_classes != self.num_classes:
            raise UserError(
                f"The class loss {name} has {loss.num_classes} classes, but the predictor has "
                f"{self.num_classes}. Use the same number."
            )
        if loss.num_outputs and self.class_score == "sigmoid" and not self.background_output:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.CLASS_LOSS {name} has an output of the background: set "
                "MODEL.ROI_BOX_HEAD.BACKGROUND_OUTPUT to True."
            )
        if loss.num_outputs and self.calibration is not None:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.CALIBRATION cannot be combined with CLASS_LOSS {name}, which "
                "computes balanced scores itself. Remove one of the two."
            )

    def _check_calibration(self, predictor: str) -> None:
        if self.calibration is not None and self.calibration.linear_only and predictor != "linear":
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.CALIBRATION {type(self.calibration).__name__} needs "
                f"MODEL.ROI_BOX_HEAD.PREDICTOR linear, got {predictor}, whose outputs do not "
                "depend on the norms of its weights."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        if head.CLASS_SCORE == "softmax" and head.USE_SIGMOID_CE:
            raise UserError(
                "MODEL.ROI_BOX_HEAD.CLASS_SCORE softmax contradicts "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True. Change one of the two."
            )
        args = super().from_config(cfg, input_shape)
        for name in ("use_fed_loss", "get_fed_loss_cls_weights", "fed_loss_num_classes"):
            args.pop(name, None)
        default = "sigmoid" if args.pop("use_sigmoid_ce") else "softmax"
        return {
            **args,
            "class_score": head.CLASS_SCORE or default,
            "background_output": head.BACKGROUND_OUTPUT,
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
            "init": head.INIT,
            "logit_clamp": head.LOGIT_CLAMP,
            "class_loss": build_box_class_loss(cfg),
            "replay": build_feature_replay(cfg),
            "calibration": head.CALIBRATION,
            "calibration_strength": head.CALIBRATION_STRENGTH,
            "calibration_datasets": cfg.DATASETS.TRAIN if head.CALIBRATION else (),
            **postprocessing_arguments(cfg),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: box features of shape (N, ...).

        Returns:
            Logits of shape (N, K) for "gumbel" and "apa", (N, K + 1) for the others, or
            (N, ``class_loss.num_outputs``) if that is set; and box deltas of shape (N, 4K), or
            (N, 4) if class-agnostic. In training with ``replay``, the logits of replayed features
            follow those of the N proposals.
        """
        if x.dim() > 2:
            x = x.flatten(1)
        deltas = self.bbox_pred(x)
        if not torch.jit.is_scripting():
            if self.training and self.replay is not None:
                x = self.replay.extend(x)
        scores = self.cls_score(x)
        if self.training and self.logit_clamp:
            scores = scores.clamp(-self.logit_clamp, self.logit_clamp)
        return scores, deltas

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """As in detectron2.

        Raises:
            UserError: the training datasets lack what the class loss needs.
        """
        logits, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        own_logits = logits.detach()[: len(gt_classes)]
        _log_classification_stats(self._with_background(own_logits), gt_classes)
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # Images without annotations have no gt_boxes and no foreground.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        labels = gt_classes
        if self.replay is not None:
            labels = self.replay.extend_labels(gt_classes)
            self.replay.record(proposals)
        losses = {
            "loss_cls": self._classification_loss(logits, labels),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _classification_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if self.class_score == "softmax":
            return self.class_loss(logits, gt_classes, None)
        if not self.class_loss.num_outputs:
            logits = logits[:, : self.num_classes]
        curve = curve_of(self.class_score, self.score, logits)
        return self.class_loss(logits, gt_classes, curve)

    def _with_background(self, logits: Tensor) -> Tensor:
        """Return scores of shape (N, K + 1), whose maximum is the predicted class."""
        if self.class_loss.num_outputs:
            return self.class_loss.probabilities(logits)
        return logits if self._has_background else self._log_odds(logits)

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: List[Instances]):  # noqa: UP006
        """As in detectron2, with calibration.

        Raises:
            UserError: the calibration's class values are unknown, or of another number of classes.
        """
        probabilities = self._probabilities(predictions[0])
        # torch.jit.trace would record len() as a constant
        return probabilities.split([p.proposal_boxes.tensor.shape[0] for p in proposals])

    def inference(
        self,
        predictions: Tuple[Tensor, Tensor],  # noqa: UP006
        proposals: List[Instances],  # noqa: UP006
    ):
        """As in detectron2, with the post-processing."""
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        sizes = [x.image_size for x in proposals]
        limits = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
        if not torch.jit.is_scripting():
            return self.postprocessing.select(boxes, scores, sizes, *limits)
        return fast_rcnn_inference(boxes, scores, sizes, limits[0], limits[1], limits[2])

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Return shape (N, K + 1). torch.jit.script skips class losses and calibrations."""
        if not torch.jit.is_scripting():
            if self.class_loss.num_outputs:
                return self.class_loss.probabilities(logits)
            if self.calibration is not None:
                logits = self.calibration.logits(logits, self.cls_score, self.num_classes)
        if not self._has_background:
            logits = self._log_odds(logits)
        if not torch.jit.is_scripting():
            if self.calibration is not None:
                name = "binary_log_odds" if self.use_sigmoid_ce else "log_odds"
                values = self._class_values.get(self.calibration, self.num_classes, logits.device)
                logits = getattr(self.calibration, name)(logits, values)
        return logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)

    @property
    def predicts_apa(self) -> bool:
        return self.class_score in ["gumbel", "apa"]

    @property
    def _has_background(self) -> bool:
        return self.class_score == "softmax" or (
            self.class_score == "sigmoid" and self.background_output
        )

    def _log_odds(self, logits: Tensor) -> Tensor:
        """Return the log-odds of classes, 0 for the background: float32, shape (N, K + 1)."""
        logits = logits.float()
        if self.class_score == "sigmoid":
            return F.pad(logits, (0, 1))
        if torch.jit.is_scripting():
            lambda_, kappa = logits.new_zeros(1), logits.new_ones(1)
            if self.score is not None:
                lambda_, kappa = self.score.parameters_for(logits)
            log_odds = eager.evaluate("logit_apa", logits, lambda_, kappa)
        else:
            log_odds = logit_apa(logits, *curve_of(self.class_score, self.score, logits))
        return F.pad(log_odds, (0, 1))
