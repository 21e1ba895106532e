"""A detector as a function of one picture to tensors, which can be traced and scripted."""

from typing import Dict  # noqa: UP035

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor, nn

__all__ = ["Detector", "ScriptableDetector"]


class Detector(nn.Module):
    """The detections of one picture, as tensors by name; see :mod:`apa_det.export`.

    They are those of the model itself for a picture without another "height" and "width", but that
    the masks stay on their boxes.

    Args:
        model: a detector of detectron2 in evaluation mode: R-CNN, Cascade R-CNN, RetinaNet, FCOS,
            and what inherits from them.

    Raises:
        ValueError: the model is in training mode, none of those, or has keypoints.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if model.training:
            raise ValueError("A detector is exported in evaluation mode: call model.eval() first.")
        self.is_rcnn = isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN)
        if not self.is_rcnn and not isinstance(model, DenseDetector):
            raise ValueError(
                f"{type(model).__name__} cannot be exported: only detectors of detectron2's "
                "GeneralizedRCNN and DenseDetector (RetinaNet, FCOS) can."
            )
        if getattr(getattr(model, "roi_heads", None), "keypoint_on", False):
            raise ValueError("Keypoints cannot be exported: set MODEL.KEYPOINT_ON False.")
        self.model = model
        self.eval()

    def forward(self, image: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        """Args: image of shape (C, H, W). Returns: boxes, classes, scores and, if any, masks."""
        with torch.no_grad(), patch_builtin_len():
            inputs = [{"image": image}]
            if self.is_rcnn:
                return _by_name(self.model.inference(inputs, do_postprocess=False)[0])
            return _by_name(self.model(inputs)[0]["instances"])


class ScriptableDetector(Detector):
    """The same for :func:`torch.jit.script`, which cannot see through ``with``."""

    is_rcnn: torch.jit.Final[bool]

    def forward(self, image: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        inputs = [{"image": image}]
        if self.is_rcnn:
            found = self.model.inference(inputs, do_postprocess=False)
        else:
            found = self.model(inputs)
        return _by_name(found[0])


def _by_name(found: Instances) -> Dict[str, Tensor]:  # noqa: UP006
    """The fields of what was found, without the boxes that have no area within the picture."""
    boxes = found.pred_boxes
    boxes.clip(found.image_size)
    found = found[boxes.nonempty()]
    outputs = {"boxes": found.pred_boxes.tensor, "classes": found.pred_classes}
    outputs["scores"] = found.scores
    if found.has("pred_masks"):
        outputs["masks"] = found.pred_masks
    return outputs
