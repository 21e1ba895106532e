"""Wrap a detector as a function from one image to tensors, for tracing and scripting."""

from typing import Dict  # noqa: UP035

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import UserError


class Detector(nn.Module):
    """Maps one image to its detections as tensors by name; see :mod:`apa_det.export`.

    The detections are those of the model for an input without "height" and "width", except that
    masks are not pasted into the image.

    Args:
        model: a detectron2 detector in evaluation mode: R-CNN, Cascade R-CNN, RetinaNet, FCOS, or
            a subclass.

    Raises:
        ValueError: the model is in training mode.
        UserError: the model is another architecture, or has keypoints.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if model.training:
            raise ValueError("The detector must be in evaluation mode: call model.eval() first.")
        self.is_rcnn = isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN)
        if not self.is_rcnn and not isinstance(model, DenseDetector):
            raise UserError(
                f"{type(model).__name__} cannot be exported. Supported are detectron2's "
                "GeneralizedRCNN and DenseDetector (RetinaNet, FCOS)."
            )
        if getattr(getattr(model, "roi_heads", None), "keypoint_on", False):
            raise UserError("Keypoints cannot be exported: set MODEL.KEYPOINT_ON False.")
        self.model = model
        self.eval()

    def forward(self, image: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        """Map an image, (C, H, W), to boxes, classes, scores and masks, if the model has them."""
        with torch.no_grad(), patch_builtin_len():
            inputs = [{"image": image}]
            if self.is_rcnn:
                return _by_name(self.model.inference(inputs, do_postprocess=False)[0])
            return _by_name(self.model(inputs)[0]["instances"])


class ScriptableDetector(Detector):
    """A detector for :func:`torch.jit.script`, which does not support these ``with`` blocks."""

    is_rcnn: torch.jit.Final[bool]

    def forward(self, image: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        inputs = [{"image": image}]
        if self.is_rcnn:
            instances = self.model.inference(inputs, do_postprocess=False)
        else:
            instances = self.model(inputs)
        return _by_name(instances[0])


def _by_name(instances: Instances) -> Dict[str, Tensor]:  # noqa: UP006
    """Return the fields by name, without boxes that are empty once clipped to the image."""
    boxes = instances.pred_boxes
    boxes.clip(instances.image_size)
    instances = instances[boxes.nonempty()]
    outputs = {"boxes": instances.pred_boxes.tensor, "classes": instances.pred_classes}
    outputs["scores"] = instances.scores
    if instances.has("pred_masks"):
        outputs["masks"] = instances.pred_masks
    return outputs
