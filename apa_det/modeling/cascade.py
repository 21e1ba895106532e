"""Cascade R-CNN with :class:`APAFastRCNNOutputLayers` at every stage."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_box_head, build_mask_head
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import ImageList, Instances, pairwise_iou
from torch import Tensor, nn

from ..errors import UserError
from .box_predictor import APAFastRCNNOutputLayers
from .mask_score import rescore_by_masks
from .matching import jitter_targets, restore_boxes
from .roi_heads import JitterMixin, build_box_pooler, require_masks


@ROI_HEADS_REGISTRY.register()
class APACascadeROIHeads(JitterMixin, CascadeROIHeads):
    """detectron2's Cascade R-CNN heads with configurable class scores at every stage.

    By default they are detectron2's: the probabilities of the stages are averaged, all stages have
    the same loss weight, each stage gets 1 / number of stages of the gradient of the features, and
    one mask head is trained on the proposals of the RPN. mmdetection averages the logits, weights
    the losses of the stages by 1, 0.5 and 0.25 with the whole gradient, and has a mask head for
    each stage, whose probabilities are averaged.
    """

    @configurable
    def __init__(
        self,
        *,
        mask_head: nn.Module | Sequence[nn.Module] | None = None,
        score_average: str = "probabilities",
        stage_loss_weights: Sequence[float] = (),
        jitter_repeated_boxes: float = 0.0,
        mask_score: bool = False,
        **kwargs,
    ):
        """
        Args:
            mask_head: one mask head, or a list with one for each stage.
            score_average: what is averaged over the stages: "probabilities" or "logits". Averaged
                logits get the class score of the last stage.
            stage_loss_weights: loss weight of each stage. The features then get the whole gradient
                of the weighted losses. Empty: as in detectron2.
            jitter_repeated_boxes: as in :class:`APAROIHeads`, at every stage.
            mask_score: as in :class:`APAROIHeads`.
            kwargs: those of :class:`detectron2.modeling.roi_heads.CascadeROIHeads`.

        Raises:
            UserError: ``score_average`` is unknown or does not support the calibration, a list has
                the wrong length, or there is no mask head for ``mask_score``.
        """
        heads = [] if mask_head is None or isinstance(mask_head, nn.Module) else list(mask_head)
        if heads:
            mask_head = StageMaskHeads(heads)
        super().__init__(**kwargs, **({} if mask_head is None else {"mask_head": mask_head}))
        key = "MODEL.ROI_BOX_CASCADE_HEAD"
        if score_average not in ("probabilities", "logits"):
            raise UserError(
                f"{key}.SCORE_AVERAGE must be probabilities or logits; got {score_average!r}."
            )
        for name, values in (
            (f"{key}.STAGE_LOSS_WEIGHTS", stage_loss_weights),
            ("The list of mask heads", heads),
        ):
            if len(values) not in (0, self.num_cascade_stages):
                raise UserError(
                    f"{name} must have one entry for each of the {self.num_cascade_stages} stages, "
                    f"got {len(values)}."
                )
        calibrations = [p.calibration for p in self.box_predictor if p.calibration is not None]
        if score_average == "logits" and any(c.linear_only for c in calibrations):
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.CALIBRATION {type(calibrations[0]).__name__} depends on the "
                f"classifier of each stage: set {key}.SCORE_AVERAGE to probabilities."
            )
        self.score_average = score_average
        self.stage_loss_weights = tuple(stage_loss_weights)
        self.jitter_repeated_boxes = jitter_repeated_boxes
        self.mask_score = mask_score
        require_masks(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        if cfg.MODEL.ROI_HEADS.LOW_QUALITY_IOU is not None:
            raise UserError(
                "APACascadeROIHeads has no low-quality matches: set "
                "MODEL.ROI_HEADS.LOW_QUALITY_IOU to None."
            )
        return {
            **super().from_config(cfg, input_shape),
            "score_average": cascade.SCORE_AVERAGE,
            "stage_loss_weights": cascade.STAGE_LOSS_WEIGHTS,
            "jitter_repeated_boxes": cfg.MODEL.ROI_HEADS.JITTER_REPEATED_BOXES,
            "mask_score": cfg.TEST.MASK_SCORE,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise UserError(
                "APACascadeROIHeads needs class-agnostic boxes: set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True."
            )
        if cascade.IOUS[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
            raise UserError(
                "MODEL.ROI_BOX_CASCADE_HEAD.IOUS must start with "
                f"MODEL.ROI_HEADS.IOU_THRESHOLDS, got {cascade.IOUS[0]} and "
                f"{cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]}."
            )
        pooler, head_shape = build_box_pooler(cfg, input_shape)
        heads = [build_box_head(cfg, head_shape) for _ in cascade.IOUS]
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_heads": heads,
            "box_predictors": [
                APAFastRCNNOutputLayers(
                    cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
                )
                for head, weights in zip(heads, cascade.BBOX_REG_WEIGHTS, strict=True)
            ],
            "proposal_matchers": [
                Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in cascade.IOUS
            ],
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        args = super()._init_mask_head(cfg, input_shape)
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        if args and cascade.MASK_HEAD_PER_STAGE:
            size = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
            channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
            shape = ShapeSpec(channels=channels, height=size, width=size)
            others = [build_mask_head(cfg, shape) for _ in cascade.IOUS[1:]]
            args["mask_head"] = [args["mask_head"], *others]
        return args

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in detectron2, with the scores of the masks."""
        instances, losses = super().forward(images, features, proposals, targets)
        if not self.training and self.mask_score and self.mask_on:
            instances = rescore_by_masks(self, instances)
        return instances, losses

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training:
            return self._detect(features, proposals)
        self._mask_losses = {}
        self._mask_features = features
        losses = {**super()._forward_box(features, proposals, targets), **self._mask_losses}
        del self._mask_losses, self._mask_features
        if self.stage_loss_weights:
            losses = {
                name: loss * self.stage_loss_weights[int(name.rpartition("_stage")[2])]
                for name, loss in losses.items()
            }
        return losses

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        inputs = [features[name] for name in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        stages, boxes = [], None
        for k, predictor in enumerate(self.box_predictor):
            if k > 0:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(inputs, proposals, k)
            stages.append((predictor, predictions, proposals))
            boxes = predictor.predict_boxes(predictions, proposals)
        if self.score_average == "logits":
            logits = sum(p[0] / self.num_cascade_stages for _, p, _ in stages)
            scores = predictor.predict_probs((logits, predictions[1]), proposals)
        else:
            scores = average_scores(stages)
        instances, _ = predictor.postprocessing.select(
            boxes,
            scores,
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return instances

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int):
        if self.training and self._has_stage_masks():
            self._mask_losses[f"loss_mask_stage{stage}"] = self._mask_loss(proposals, stage)
        if not self.stage_loss_weights:
            return super()._run_stage(features, proposals, stage)
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _mask_loss(self, proposals: list[Instances], stage: int) -> Tensor:
        proposals, _ = select_foreground_proposals(proposals, self.num_classes)
        inputs = [self._mask_features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler(inputs, [p.proposal_boxes for p in proposals])
        return self.mask_head[stage](pooled, proposals)["loss_mask"]

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if self.training and self._has_stage_masks():
            return {}  # the box stages have computed the losses
        return super()._forward_mask(features, instances)

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """As in detectron2, with jittered boxes, and with masks for the mask head of the stage."""
        if self.jitter_repeated_boxes:
            targets = jitter_targets(targets, self.jitter_repeated_boxes)
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        needed = ["gt_given_boxes"] + ["gt_masks"] * self._has_stage_masks()
        for proposal, target in zip(proposals, targets, strict=True):
            names = [name for name in needed if target.has(name)]
            if names and len(target):
                iou = pairwise_iou(target.gt_boxes, proposal.proposal_boxes)
                matches, _ = self.proposal_matchers[stage](iou)
                for name in names:
                    proposal.set(name, target.get(name)[matches])
        return restore_boxes(proposals)

    def _has_stage_masks(self) -> bool:
        return self.mask_on and isinstance(self.mask_head, StageMaskHeads)


def average_scores(stages: Sequence[tuple]) -> list[Tensor]:
    """Return the mean probabilities of the stages of a cascade for each image, as detectron2 does.

    Args:
        stages: predictor, predictions and proposals of each stage. One stage is no cascade.
    """
    by_stage = [p.predict_probs(predictions, proposals) for p, predictions, proposals in stages]
    return [sum(scores) * (1.0 / len(stages)) for scores in zip(*by_stage, strict=True)]


class StageMaskHeads(nn.ModuleList):
    """The mask heads of the stages of a cascade. In inference, their probabilities are averaged."""

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        """Set ``pred_masks``, as detectron2's mask heads do in inference."""
        by_head = []
        for head in self:
            instances = head(x, instances)
            by_head.append([image.pred_masks for image in instances])
        for image, masks in zip(instances, zip(*by_head, strict=True), strict=True):
            image.pred_masks = sum(masks) / len(masks)
        return instances
