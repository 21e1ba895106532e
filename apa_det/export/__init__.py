"""Detectors for where neither apa_det nor detectron2 is: TorchScript, ONNX, torch.export.

An exported detector takes one picture and gives its detections, as detectron2's model does before
it resizes them to another output size:

===========  =======================================================================================
``image``    float32, (C, H, W): the picture in the channel order of ``INPUT.FORMAT``, values from 0
             to 255, resized as for testing (``INPUT.MIN_SIZE_TEST``, ``MAX_SIZE_TEST``). It is
             normalised and padded within.
``boxes``    float32, (N, 4): x0, y0, x1, y1 in pixels of ``image``.
``classes``  int64, (N,), from 0 on.
``scores``   float32, (N,), in descending order.
``masks``    float32, (N, 1, M, M), of models with masks: probabilities on a grid over each box.
             Resized to the box linearly, pixels of at least 0.5 are in the mask
             (``detectron2.layers.paste_masks_in_image`` does it). A threshold of another value
             (``MODEL.ROI_MASK_HEAD.THRESHOLD``) is in the values already.
===========  =======================================================================================

TorchScript modules return a dict by these names. An exported backbone takes ``images``, which are
the same but of shape (N, C, H, W), H and W multiples of twice its ``size_divisibility``, and
returns a dict of feature maps.
"""

from .backbone import Backbone, export_backbone
from .detector import Detector
from .formats import describe_file, export_file, read_sample
from .onnx import export_onnx
from .torchscript import export_scripting, export_tracing
from .verification import (
    BOX_TOLERANCE,
    FEATURE_TOLERANCE,
    SCORE_TOLERANCE,
    Difference,
    Verification,
    compare,
    compare_features,
    load_exported,
    verify_file,
)

__all__ = [
    "BOX_TOLERANCE",
    "Backbone",
    "Detector",
    "Difference",
    "FEATURE_TOLERANCE",
    "SCORE_TOLERANCE",
    "Verification",
    "compare",
    "compare_features",
    "describe_file",
    "export_backbone",
    "export_file",
    "export_onnx",
    "export_scripting",
    "export_tracing",
    "load_exported",
    "read_sample",
    "verify_file",
]
