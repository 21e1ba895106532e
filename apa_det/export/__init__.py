"""Export detectors to TorchScript, ONNX or torch.export, to run without apa_det and detectron2.

An exported detector maps one image to its detections, like detectron2's model before it rescales
them to the output size:

===========  =======================================================================================
``image``    float32, (C, H, W): channels in the order of ``INPUT.FORMAT``, values from 0 to 255,
             resized as for testing (``INPUT.MIN_SIZE_TEST``, ``MAX_SIZE_TEST``). The detector
             normalizes and pads it.
``boxes``    float32, (N, 4): x0, y0, x1, y1 in pixels of ``image``.
``classes``  int64, (N,), from 0.
``scores``   float32, (N,), in descending order.
``masks``    float32, (N, 1, M, M), only of models with masks: probabilities on a grid over each
             box. To get a binary mask, resize the grid to the box linearly and take the pixels
             >= 0.5 (see ``detectron2.layers.paste_masks_in_image``). If
             ``MODEL.ROI_MASK_HEAD.THRESHOLD`` is another one, the values are scaled accordingly.
===========  =======================================================================================

TorchScript modules return a dict with these keys. An exported backbone takes ``images``, of shape
(N, C, H, W) and otherwise the same, with H and W multiples of twice its ``size_divisibility``, and
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
