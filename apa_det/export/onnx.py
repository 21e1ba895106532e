"""Export detectors as ONNX graphs of standard operators."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torchvision
from torch import Tensor, nn
from torch.onnx import register_custom_op_symbolic, symbolic_helper, unregister_custom_op_symbolic
from torchvision.ops import _register_onnx_ops

from ..errors import MissingPackageError, UserError
from ..modeling.postprocessing import postprocessings
from .detector import Detector
from .torchscript import nms_in_graph, without_trace_warnings

OPSET = 17
"""ONNX operator set: RoIAlign has ``aligned`` since version 16, LayerNorm exists since 17."""


def export_onnx(model: nn.Module, image: Tensor, file: str, *, dynamic: bool = True) -> None:
    """Write a detector as an ONNX graph for onnxruntime.

    The input is ``image``; the outputs are ``boxes``, ``classes``, ``scores`` and, if the model has
    them, ``masks``; see :mod:`apa_det.export`.

    Args:
        model: see :class:`Detector`; on the CPU; it is not modified.
        image: (C, H, W), float32; the model must detect something in it.
        file: the file to write.
        dynamic: accept images of any size, not only that of ``image``.

    Raises:
        MissingPackageError: the package onnx is not installed.
        UserError: the model cannot be exported.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "ONNX export needs the package onnx: pip install 'apa_det[export]'."
        ) from error
    if any(p.soft_nms for p in postprocessings(model)):
        raise UserError(
            "Soft-NMS cannot be exported to ONNX: trace to TorchScript, or set "
            'TEST.SOFT_NMS.METHOD to "".'
        )
    detector = _Tuple(Detector(model)).eval()
    names = list(detector.detector(image))
    axes = {name: {0: "detections"} for name in names}
    if dynamic:
        axes["image"] = {1: "height", 2: "width"}
    nms = torch.jit.script(_batched_nms)
    with nms_in_graph(nms), _symbolics(), without_trace_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
        try:
            torch.onnx.export(
                detector,
                (image,),
                file,
                input_names=["image"],
                output_names=names,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except RuntimeError as error:  # OnnxExporterError and others
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"The model cannot be exported to ONNX: {reason}") from error


class _Tuple(nn.Module):
    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detector(image).values())


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's ``batched_nms``, bit-identical to its results on the CPU."""
    if boxes.numel() == 0:
        kept = torch.zeros_like(idxs)
    elif boxes.numel() <= 4000:
        offsets = idxs.to(boxes.dtype) * (boxes.max() + 1)
        kept = torchvision.ops.nms(boxes + offsets[:, None], scores, iou_threshold)
    else:
        kept = torch.zeros_like(idxs[:0])
        for value in torch.unique(idxs):
            members = torch.nonzero(idxs == value).reshape(-1)
            selected = torchvision.ops.nms(boxes[members], scores[members], iou_threshold)
            kept = torch.cat([kept.reshape(-1), members[selected].reshape(-1)])
        kept = kept.reshape(-1).sort()[0]
        kept = kept[scores[kept].sort(descending=True)[1]]
    return kept.reshape(-1)  # the rank is lost in ONNX branches and loops


@contextmanager
def _symbolics() -> Iterator[None]:
    """Register exporters for operators that PyTorch exports inexactly or not at all."""
    register_custom_op_symbolic("aten::log1p", _log1p, OPSET)
    register_custom_op_symbolic("aten::expm1", _expm1, OPSET)
    register_custom_op_symbolic("torchvision::nms", _nms, OPSET)
    try:
        yield
    finally:
        for name in ("aten::log1p", "aten::expm1", "torchvision::nms"):
            unregister_custom_op_symbolic(name, OPSET)
        _register_onnx_ops._register_custom_op()


def _log1p(g, x):
    """log u + (x − (u − 1))/u with u = 1 + x: the second term corrects the rounding of u."""
    one = _constant(g, 1.0)
    u = g.op("Add", x, one)
    lost = g.op("Sub", x, g.op("Sub", u, one))
    return g.op("Add", g.op("Log", u), g.op("Div", lost, u))


def _expm1(g, x):
    """2t/(1 − t) with t = tanh(x/2) for |x| < 1, e^x − 1 elsewhere."""
    one, half = _constant(g, 1.0), g.op("Mul", x, _constant(g, 0.5))
    t = g.op("Tanh", half)
    small = g.op("Div", g.op("Add", t, t), g.op("Sub", one, t))
    is_small = g.op("Less", g.op("Abs", x), one)
    return g.op("Where", is_small, small, g.op("Sub", g.op("Exp", x), one))


def _nms(g, boxes, scores, iou_threshold):
    """As torchvision's exporter, but the result has a known rank inside loops too."""
    threshold = symbolic_helper._maybe_get_const(iou_threshold, "f")
    selected = g.op(
        "NonMaxSuppression",
        g.op("Unsqueeze", boxes, _constant(g, [0])),
        g.op("Unsqueeze", scores, _constant(g, [0, 1])),
        _constant(g, [sys.maxsize]),
        _constant(g, [threshold]),
    )
    return g.op("Gather", selected, _constant(g, 2), axis_i=1)


def _constant(g, value):
    return g.op("Constant", value_t=torch.tensor(value))
