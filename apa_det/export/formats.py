"""Export a detector to a file by the name of a format, and describe its input and outputs."""

import os

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from tabulate import tabulate
from torch import Tensor, nn

from ..data.image_files import read_image
from ..data.mapper import augment
from ..errors import UserError
from .backbone import Backbone, export_backbone
from .detector import Detector
from .onnx import export_onnx
from .torchscript import export_scripting, export_tracing

FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "torch_export": "backbone.pt2"}
"""The file name of each format."""


def export_file(
    model: nn.Module,
    image: Tensor,
    output_dir: str,
    format: str,
    *,
    method: str = "tracing",
    dynamic: bool = True,
) -> str:
    """Export a detector, or with ``torch_export`` its backbone.

    Args:
        model: the model, in evaluation mode; on the CPU unless the format is ``torchscript``.
        image: (C, H, W), float32; the model must detect something in it.
        output_dir: an existing folder.
        format: a key of :data:`FILES`.
        method: ``tracing`` or ``scripting``, for ``torchscript``.
        dynamic: accept images of any size, not only that of ``image``.

    Returns:
        The path of the file.

    Raises:
        UserError: the model detects nothing in the image, or cannot be exported.
        MissingPackageError: the package of the format is not installed.
    """
    path = os.path.join(output_dir, FILES[format])
    if format == "torch_export":
        torch.export.save(export_backbone(model, image, dynamic=dynamic), path)
        return path
    if len(Detector(model)(image)["scores"]) == 0:
        raise UserError(
            "The model detects nothing in the first sample image. Give one with objects that it "
            "detects."
        )
    if format == "onnx":
        export_onnx(model, image, path, dynamic=dynamic)
    elif method == "scripting":
        export_scripting(model).save(path)
    else:
        export_tracing(model, image).save(path)
    return path


def describe_file(
    model: nn.Module, image: Tensor, format: str, image_format: str, *, dynamic: bool = True
) -> str:
    """Return a table of the inputs and outputs of a file written by :func:`export_file`.

    Args:
        model, image, format, dynamic: as in :func:`export_file`.
        image_format: the order of the channels, e.g. "RGB".
    """
    channels, note = len(image), f"{image_format}, 0 to 255, resized as for testing"
    if format == "torch_export":
        backbone = Backbone(model)
        number, height, width = "N", "H", "W"
        if not dynamic:
            number, _, height, width = backbone.batch(image).shape
        note += f", padded to multiples of {backbone.step}"
        rows = [["images", "float32", f"({number}, {channels}, {height}, {width})", note]]
        for name, level in model.backbone.output_shape().items():
            size = f"{height} / {level.stride}, {width} / {level.stride}"
            rows.append([name, "float32", f"({number}, {level.channels}, {size})", ""])
        return tabulate(rows, tablefmt="plain")
    height, width = ("H", "W") if dynamic else image.shape[1:]
    rows = [["image", "float32", f"({channels}, {height}, {width})", note]]
    notes = {
        "boxes": "x0, y0, x1, y1 in pixels of the image",
        "masks": "probabilities in each box; resized to the box, >= 0.5 is in the mask",
    }
    for name, values in Detector(model)(image).items():
        shape = ", ".join(["N", *map(str, values.shape[1:])]) + "," * (values.dim() == 1)
        rows.append([name, str(values.dtype).removeprefix("torch."), f"({shape})", notes.get(name)])
    return tabulate(rows, tablefmt="plain")


def read_sample(path: str, mapper: DatasetMapper) -> Tensor:
    """Read an image and resize it with a test mapper: (C, H, W), float32.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not an image, or is broken.
    """
    resized = T.AugInput(read_image(path, mapper.image_format))
    augment(mapper.augmentations, resized, path)
    return torch.from_numpy(resized.image.transpose(2, 0, 1).astype(np.float32))
