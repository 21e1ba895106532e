"""RetinaNet and FCOS with the class scores, class losses and calibrations of the box head."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..activation import logit_apa
from ..errors import UserError
from .calibration import ClassValues, build_calibration
from .class_scores import build_apa_score, curve_of, set_prior_bias
from .losses import BINARY_SCORES, BoxClassLoss, FocalLoss, build_box_class_loss
from .postprocessing import ARGUMENTS, PostProcessing, postprocessing_arguments

_NODE = "MODEL.RETINANET"


class DenseClassScores:
    """The mixin of :class:`APARetinaNet` and :class:`APAFCOS`.

    Scores are those of :class:`apa_det.modeling.APAFastRCNNOutputLayers` without softmax: each of
    the K outputs of an anchor has its own background. λ, κ and the statistics of the class loss are
    modules of the head: ``head.score`` and ``head.class_loss``.
    """

    def __init__(
        self,
        *,
        class_score: str = "sigmoid",
        score_per_class: bool = False,
        score_lambda_range: tuple[float, float] = (1.0, 1.0),
        score_kappa_range: tuple[float, float] = (1.0, 1.0),
        score_lambda_min: float = 1e-4,
        logit_clamp: float = 0.0,
        class_loss: BoxClassLoss | None = None,
        calibration: str = "",
        calibration_strength: float = 0.0,
        calibration_datasets: str | Sequence[str] = (),
        **kwargs,
    ):
        """
        Args:
            class_score: "sigmoid", "gumbel" or "apa". The bias of ``head.cls_score`` is set so that
                the initial score of a class is the one that the head gives with the sigmoid, its
                ``prior_prob``.
            score_per_class, score_lambda_range, score_kappa_range, score_lambda_min, logit_clamp:
                see :class:`apa_det.modeling.APAFastRCNNOutputLayers`.
            class_loss: one of :mod:`apa_det.modeling.losses` for such scores. Its mean over anchors
                is multiplied by their number, and divided by detectron2's running mean of the
                number of foreground anchors. None: the focal loss.
            calibration, calibration_strength, calibration_datasets: see
                :class:`apa_det.modeling.APAFastRCNNOutputLayers`.
            kwargs: those of the detector in detectron2, and of
                :class:`apa_det.modeling.postprocessing.PostProcessing`.

        Raises:
            UserError: a name is unknown, a value is out of range, or the class loss does not
                support the class score, the number of classes or anchors.
        """
        own = {name: kwargs.pop(name) for name in ARGUMENTS if name in kwargs}
        super().__init__(**kwargs)
        self.postprocessing = PostProcessing(self.num_classes, **own)
        if class_score not in BINARY_SCORES:
            known = ", ".join(BINARY_SCORES)
            raise UserError(f"{_NODE}.CLASS_SCORE must be one of {known}; got {class_score!r}.")
        if logit_clamp < 0:
            raise UserError(f"{_NODE}.LOGIT_CLAMP must be >= 0, got {logit_clamp}.")
        self.class_score, self.logit_clamp = class_score, logit_clamp
        # detectron2's loss is used for the same numbers
        self._has_focal_loss = class_loss is None and class_score == "sigmoid" and not logit_clamp
        if class_loss is None:
            class_loss = FocalLoss(
                self.num_classes, gamma=self.focal_loss_gamma, alpha=self.focal_loss_alpha
            )
        self._check_class_loss(class_loss)
        self.head.class_loss = class_loss
        self.head.score = build_apa_score(
            class_score,
            self.num_classes if score_per_class else None,
            score_lambda_range,
            score_kappa_range,
            score_lambda_min,
            _NODE,
        )
        if class_score != "sigmoid":
            set_prior_bias(self.head.cls_score.bias, class_score, self.head.score)
        self.calibration = build_calibration(calibration, calibration_strength, _NODE)
        is_one = isinstance(calibration_datasets, str)
        self.calibration_datasets = [calibration_datasets] if is_one else calibration_datasets
        self._class_values = ClassValues(self.calibration_datasets)

    def _check_class_loss(self, loss: BoxClassLoss) -> None:
        name = type(loss).__name__
        if self.class_score not in loss.class_scores or loss.num_outputs:
            raise UserError(
                f"{_NODE}.CLASS_LOSS {name} needs "
                f"{'outputs of its own' if loss.num_outputs else ' or '.join(loss.class_scores)}, "
                f"but dense detectors have one {self.class_score} score per class and anchor: "
                "choose another loss, e.g. FocalLoss."
            )
        if loss.num_classes != self.num_classes:
            raise UserError(
                f"The class loss {name} has {loss.num_classes} classes, but the detector has "
                f"{self.num_classes}. Use the same number."
            )

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        """As in detectron2. In inference, the logits become calibrated log-odds of the scores."""
        if self.training:
            return super()._transpose_dense_predictions(predictions, dims_per_anchor)
        logits, *others = predictions
        if self.calibration is not None and self.calibration.linear_only:
            logits = [self._reweighted(x) for x in logits]
        logits, *others = super()._transpose_dense_predictions([logits, *others], dims_per_anchor)
        if self.class_score != "sigmoid" or self.calibration is not None:
            logits = [self._log_odds(x) for x in logits]
        return [logits, *others]

    def _reweighted(self, logits: Tensor) -> Tensor:
        """Apply a calibration of the classifier, with one row per filter: (N, A K, H, W)."""
        conv = self.head.cls_score
        layer = SimpleNamespace(weight=conv.weight.flatten(1), bias=conv.bias)
        rows = logits.movedim(1, -1)
        rows = self.calibration.logits(rows.flatten(0, -2), layer, len(conv.bias)).view(rows.shape)
        return rows.movedim(-1, 1)

    def _log_odds(self, logits: Tensor) -> Tensor:
        """Return the calibrated log-odds of logits, both of shape (N, R, K)."""
        x = logits.float().flatten(0, 1)
        if self.class_score != "sigmoid":
            x = logit_apa(x, *curve_of(self.class_score, self.head.score, x))
        if self.calibration is not None:
            values = self._class_values.get(self.calibration, self.num_classes, x.device)
            x = self.calibration.binary_log_odds(F.pad(x, (0, 1)), values)[:, :-1]
        return x.view(logits.shape)

    def _class_loss(self, pred_logits: list[Tensor], gt_labels: Tensor) -> Tensor:
        """Return the class loss, summed over anchors, whose labels have shape (N, R)."""
        is_valid = gt_labels >= 0
        logits, labels = torch.cat(pred_logits, dim=1)[is_valid], gt_labels[is_valid]
        if self.logit_clamp:
            logits = logits.clamp(-self.logit_clamp, self.logit_clamp)
        curve = curve_of(self.class_score, self.head.score, logits)
        return self.head.class_loss(logits, labels, curve) * len(logits)

    def _normalizer(self, is_foreground: Tensor, initial: int) -> float:
        """Return detectron2's running mean of the number of foreground anchors, and log it."""
        number = is_foreground.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", number / len(is_foreground))
        return self._ema_update("loss_normalizer", max(number, 1), initial)

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """As in detectron2, with the post-processing. Thresholds apply before the best anchors."""
        if not self.postprocessing.is_active:
            return super().inference_single_image(anchors, box_cls, box_delta, image_size)
        thresholds = self.postprocessing.thresholds(self.test_score_thresh, box_cls[0].device)
        predicted = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, thresholds, self.test_topk_candidates, image_size
        )
        kept, scores = self.postprocessing.suppress(
            predicted.pred_boxes.tensor,
            predicted.scores,
            predicted.pred_classes,
            self.test_nms_thresh,
            self.test_score_thresh,
            self.max_detections_per_image,
        )
        detections = predicted[kept]
        detections.scores = scores
        return detections


@META_ARCH_REGISTRY.register()
class APARetinaNet(DenseClassScores, RetinaNet):
    """detectron2's RetinaNet with configurable class scores; see :class:`DenseClassScores`.

    With default arguments it is detectron2's.
    """

    @configurable
    def __init__(self, **kwargs):
        """``kwargs`` are those of :class:`DenseClassScores`."""
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.RETINANET
        has_loss = node.CLASS_LOSS or node.CLASS_WEIGHTS is not None
        return {
            **super().from_config(cfg),
            "class_score": node.CLASS_SCORE,
            "score_per_class": node.SCORE_PER_CLASS,
            "score_lambda_range": tuple(node.SCORE_LAMBDA_RANGE),
            "score_kappa_range": tuple(node.SCORE_KAPPA_RANGE),
            "score_lambda_min": cfg.MODEL.APA.LAMBDA_MIN,
            "logit_clamp": node.LOGIT_CLAMP,
            "class_loss": build_dense_class_loss(cfg) if has_loss else None,
            "calibration": node.CALIBRATION,
            "calibration_strength": node.CALIBRATION_STRENGTH,
            "calibration_datasets": cfg.DATASETS.TRAIN if node.CALIBRATION else (),
            **postprocessing_arguments(cfg),
        }

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """As in detectron2.

        Raises:
            UserError: the training datasets lack what the class loss needs.
        """
        if self._has_focal_loss:
            return super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        labels = torch.stack(gt_labels)
        is_foreground = (labels >= 0) & (labels < self.num_classes)
        normalizer = self._normalizer(is_foreground, 100)
        box_loss = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            is_foreground,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        class_loss = self._class_loss(pred_logits, labels)
        return {"loss_cls": class_loss / normalizer, "loss_box_reg": box_loss / normalizer}


class APAFCOS(DenseClassScores, FCOS):
    """detectron2's FCOS with configurable class scores, for LazyConfigs.

    A score is the root of the class score times the centerness, as in detectron2; the calibration
    applies to the class score. With default arguments it is detectron2's FCOS. The arguments are
    those of :class:`DenseClassScores`.
    """

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """As in detectron2; see :meth:`APARetinaNet.losses`."""
        if self._has_focal_loss:
            return super().losses(
                anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness
            )
        labels = torch.stack(gt_labels)
        is_foreground = labels < self.num_classes
        normalizer = self._normalizer(is_foreground, 300)
        box_loss = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            is_foreground,
            box_reg_loss_type="giou",
        )
        targets = self.compute_ctrness_targets(anchors, gt_boxes)[is_foreground]
        centerness = torch.cat(pred_centerness, dim=1).squeeze(dim=2)[is_foreground]
        center_loss = F.binary_cross_entropy_with_logits(centerness, targets, reduction="sum")
        return {
            "loss_fcos_cls": self._class_loss(pred_logits, labels) / normalizer,
            "loss_fcos_loc": box_loss / normalizer,
            "loss_fcos_ctr": center_loss / normalizer,
        }


def build_dense_class_loss(cfg: CfgNode) -> BoxClassLoss:
    """Build the loss of ``MODEL.RETINANET.CLASS_LOSS``, with the keys of that node.

    Raises:
        UserError: see :func:`apa_det.modeling.losses.build_box_class_loss`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    head, node = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.RETINANET
    for name in node.keys() & head.keys():
        head[name] = node[name]
    head.FOCAL_LOSS_GAMMA, head.FOCAL_LOSS_ALPHA = node.FOCAL_LOSS_GAMMA, node.FOCAL_LOSS_ALPHA
    head.CLASS_LOSS = node.CLASS_LOSS or FocalLoss.__name__
    head.USE_DROP_LOSS = head.USE_FED_LOSS = False
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = node.NUM_CLASSES
    try:
        return build_box_class_loss(cfg)
    except UserError as error:
        raise UserError(str(error).replace("MODEL.ROI_BOX_HEAD.", f"{_NODE}.")) from error
