"""Scores of detections that take their masks into account."""

import torch
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Instances
from torch import Tensor

from .postprocessing import postprocessings


def maskness(probabilities: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the mean probability of the pixels that are in the mask; 0 for an empty mask.

    "SOLO: A Simple Framework for Instance Segmentation" (Wang et al., TPAMI 2021, section 3.4)
    multiplies the class score by it, and calls it maskness.

    Args:
        probabilities: shape (N, ..., H, W).
        threshold: pixels of at least this probability are in the mask.

    Returns:
        Shape (N,), 0 or in [``threshold``, 1].
    """
    rows = probabilities.flatten(1)
    inside = (rows >= threshold).to(rows.dtype)
    return (rows * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)


def rescore_by_masks(heads: ROIHeads, instances: list[Instances]) -> list[Instances]:
    """Multiply the scores of detections by the maskness of their masks, and sort them again.

    Detections whose new score does not exceed the score threshold of their class are dropped.

    Args:
        heads: the RoI heads that made the detections.
        instances: with ``pred_masks``, (N, 1, H, W), as from a mask head of detectron2 or apa_det.
    """
    module = heads.mask_head
    module = module[0] if isinstance(module, torch.nn.ModuleList) else module
    threshold = getattr(module, "mask_threshold", 0.5)
    predictor = heads.box_predictor
    predictor = predictor[-1] if isinstance(predictor, torch.nn.ModuleList) else predictor
    result = []
    for image in instances:
        # APAMaskRCNNConvUpsampleHead scales the probabilities by 0.5 / its threshold.
        probabilities = image.pred_masks * (threshold / 0.5)
        scores = image.scores * maskness(probabilities, threshold)
        image.scores = scores
        (post,) = postprocessings(predictor)
        above = post.above(scores, image.pred_classes, predictor.test_score_thresh)
        image = image[above]
        result.append(image[image.scores.sort(descending=True)[1]])
    return result
