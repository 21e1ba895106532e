"""Detectors as TorchScript, by tracing and by scripting."""

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

from ..modeling.box_predictor import APAFastRCNNOutputLayers
from .detector import Detector, ScriptableDetector

__all__ = ["export_scripting", "export_tracing", "nms_in_graph", "without_trace_warnings"]

_FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
    "pred_masks": Tensor,
}


def export_tracing(model: nn.Module, image: Tensor) -> torch.jit.ScriptModule:
    """A detector as TorchScript, by running it on a picture.

    It takes pictures of any size, one at a time.

    Args:
        model: see :class:`Detector`; it is left as it is.
        image: shape (C, H, W), float32: a picture in which the model finds something.

    Returns:
        The module, of an image to a dict of tensors; see :mod:`apa_det.export`.

    Raises:
        ValueError: the model cannot be exported.
    """
    batched_nms = torch.jit.script(torchvision.ops.batched_nms)
    with nms_in_graph(batched_nms), without_trace_warnings(), torch.no_grad():
        return torch.jit.trace(Detector(_copy(model)), image, strict=False, check_trace=False)


def export_scripting(model: nn.Module) -> torch.jit.ScriptModule:
    """A detector as TorchScript, by compiling its Python code.

    Args:
        model: see :class:`Detector`; it is left as it is. detectron2's Cascade R-CNN is not
            scriptable.

    Returns:
        As :func:`export_tracing`.

    Raises:
        ValueError: the model cannot be exported.
    """
    if isinstance(getattr(model, "roi_heads", None), CascadeROIHeads):
        raise ValueError("detectron2's Cascade R-CNN cannot be scripted: trace it.")
    detector = ScriptableDetector(_without_sync(_copy(model)))
    for module in detector.modules():
        if isinstance(module, APAFastRCNNOutputLayers):
            if module.calibration is not None or module.class_loss.num_outputs:
                raise ValueError(
                    "A box classifier with a calibration, or whose loss asks for other outputs, "
                    "cannot be scripted: trace it."
                )
            del module.class_loss  # it is of no use here, and is not scriptable
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        try:
            return scripting_with_instances(detector, _FIELDS)
        except (RuntimeError, torch.jit.frontend.FrontendError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"torch.jit.script does not take this model: trace it. ({reason})"
            ) from error


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False)


def _without_sync(module: nn.Module) -> nn.Module:
    """With plain batch norms, which are the same in evaluation, for synchronised ones."""
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
    """Within, a trace records how many boxes make ``batched_nms`` go class by class.

    Traced itself, torchvision's always moves the boxes of each class far apart to suppress those of
    all classes at once. float32 then rounds boxes of a late class among many to whole eighths of a
    pixel, and other boxes are kept than by the model.
    """
    with mock.patch.object(torchvision.ops.boxes, "batched_nms", batched_nms):
        yield


@contextmanager
def without_trace_warnings() -> Iterator[None]:
    """Within, nobody is told what could be constant in a graph: the sizes of RoIs are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
