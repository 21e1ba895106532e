from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

from apa_det.modeling import APACascadeROIHeads

BBOX_REG_WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
# The inverses of 0.1 and 0.2, 0.05 and 0.1, 0.033 and 0.067
MMDET_BBOX_REG_WEIGHTS = (
    (10.0, 10.0, 5.0, 5.0),
    (20.0, 20.0, 10.0, 10.0),
    (30.303030303, 30.303030303, 14.925373134, 14.925373134),
)


def make_cascade(model, bbox_reg_weights=BBOX_REG_WEIGHTS):
    """Replace the box head of a Faster or Mask R-CNN by Cascade R-CNN's, in place."""
    heads = model.roi_heads
    head, predictor = heads.pop("box_head"), heads.pop("box_predictor")
    mask = {name: heads.pop(name) for name in list(heads) if name.startswith("mask_")}
    del heads.proposal_matcher
    heads.update(
        _target_=APACascadeROIHeads,
        box_heads=[head] * 3,
        box_predictors=[
            {
                **predictor,
                "num_classes": "${...num_classes}",
                "box2box_transform": L(Box2BoxTransform)(weights=weights),
            }
            for weights in bbox_reg_weights
        ],
        proposal_matchers=[
            L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
            for iou in (0.5, 0.6, 0.7)
        ],
        **mask,  # last, so that layers draw their initial weights in the order of the yaml config
    )


def make_mmdet_cascade(model):
    """Like :func:`make_cascade`, with the settings of mmdetection."""
    make_cascade(model, MMDET_BBOX_REG_WEIGHTS)
    model.proposal_generator.anchor_boundary_thresh = 0
    model.roi_heads.update(score_average="logits", stage_loss_weights=[1.0, 0.5, 0.25])
