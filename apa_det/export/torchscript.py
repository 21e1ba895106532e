"""Export detectors to TorchScript by tracing or scripting."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torchvision
from detectron2.export import scripting_with_instances
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.box_predictor import APAFastRCNNOutputLayers
from ..modeling.postprocessing import postprocessings
from .detector import Detector, ScriptableDetector

_FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
    "pred_masks": Tensor,
}


def export_tracing(model: nn.Module, image: Tensor) -> torch.jit.ScriptModule:
    """Trace a detector on an image. The result accepts images of any size, one at a time.

    Args:
        model: see :class:`Detector`; it is not modified.
        image: (C, H, W), float32; the model must detect something in it.

    Returns:
        A module that maps an image to a dict of tensors; see :mod:`apa_det.export`.

    Raises:
        UserError: the model cannot be exported.
    """
    batched_nms = torch.jit.script(torchvision.ops.batched_nms)
    with nms_in_graph(batched_nms), without_trace_warnings(), torch.no_grad():
        return torch.jit.trace(Detector(_copy(model)), image, strict=False, check_trace=False)


def export_scripting(model: nn.Module) -> torch.jit.ScriptModule:
    """Script a detector.

    Args:
        model: see :class:`Detector`; it is not modified. detectron2's Cascade R-CNN is not
            scriptable.

    Returns:
        A module as that of :func:`export_tracing`.

    Raises:
        UserError: the model cannot be exported.
    """
    if isinstance(getattr(model, "roi_heads", None), CascadeROIHeads):
        raise UserError("detectron2's Cascade R-CNN cannot be scripted: use tracing.")
    has_mask_score = any(getattr(module, "mask_score", False) for module in model.modules())
    if has_mask_score or any(p.is_active for p in postprocessings(model)):
        raise UserError(
            "Soft-NMS, class-agnostic NMS, score thresholds by group and mask scores cannot be "
            "scripted: use tracing."
        )
    detector = ScriptableDetector(_without_sync(_copy(model)))
    for module in detector.modules():
        if isinstance(module, APAFastRCNNOutputLayers):
            if module.calibration is not None or module.class_loss.num_outputs:
                raise UserError(
                    "A box predictor with a calibration, or with a class loss that sets its number "
                    "of outputs, cannot be scripted: use tracing."
                )
            del module.class_loss  # unused in inference, and not scriptable
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        try:
            return scripting_with_instances(detector, _FIELDS)
        except (RuntimeError, torch.jit.frontend.FrontendError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"torch.jit.script does not support this model: use tracing. ({reason})"
            ) from error


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


def _without_sync(module: nn.Module) -> nn.Module:
    """Replace SyncBatchNorm by batch norm, which is identical in evaluation."""
    if type(module) is nn.SyncBatchNorm:
        plain = nn.BatchNorm2d(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        plain.load_state_dict(module.state_dict())
        return plain.to(module.running_mean.device).eval()
    for name, child in module.named_children():
        setattr(module, name, _without_sync(child))
    return module


@contextmanager
def nms_in_graph(batched_nms: Callable) -> Iterator[None]:
    """Replace torchvision's ``batched_nms`` while tracing, to keep its branch in the graph.

    For many boxes, torchvision runs NMS class by class; for few, it offsets the boxes of each class
    and runs NMS once. A trace of it always does the latter: with many classes, float32 then rounds
    boxes to eighths of a pixel, and NMS keeps other boxes than in the model.
    """
    with mock.patch.object(torchvision.ops.boxes, "batched_nms", batched_nms):
        yield


@contextmanager
def without_trace_warnings() -> Iterator[None]:
    """Suppress warnings about constants in the graph: RoI sizes are meant to be constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
