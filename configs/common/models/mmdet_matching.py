from detectron2.config import LazyCall as L

from apa_det.modeling import APARPN, LowQualityMatcher


def use_mmdet_matching(model, *, roi_heads):
    """Let an R-CNN match boxes as mmdetection does, in place.

    Args:
        model: the LazyConfig of the model.
        roi_heads: also allow low-quality matches in the RoI heads, as mmdetection's Mask R-CNN
            does.
    """
    model.proposal_generator.update(
        _target_=APARPN,
        anchor_matcher=L(LowQualityMatcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], min_quality=0.3
        ),
    )
    if roi_heads:
        model.roi_heads.proposal_matcher = L(LowQualityMatcher)(
            thresholds=[0.5], labels=[0, 1], min_quality=0.5
        )
