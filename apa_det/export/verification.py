"""What an exported file gives, against what the model gives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..errors import MissingPackageError, UserError
from .backbone import Backbone
from .detector import Detector

__all__ = [
    "BOX_TOLERANCE",
    "FEATURE_TOLERANCE",
    "SCORE_TOLERANCE",
    "Difference",
    "Verification",
    "compare",
    "compare_features",
    "load_exported",
    "verify_file",
]

BOX_TOLERANCE = 0.01
"""Of the coordinates of boxes, in pixels."""
SCORE_TOLERANCE = 1e-4
"""Of scores, and of the probabilities in masks."""
FEATURE_TOLERANCE = 1e-4
"""Of features, in units of the largest of their level."""

# Rounding decides which of two detections whose scores are so close is the last in the list.
_TIE = 1e-6


class Difference(NamedTuple):
    """How far two lists of detections of one picture are apart.

    Attributes:
        expected, found: the numbers of detections.
        compared: of the expected ones, how many have been compared.
        boxes: the largest difference of a coordinate, in pixels.
        scores, masks: the largest differences of scores, and of probabilities in masks.
    """

    expected: int
    found: int
    compared: int
    boxes: float
    scores: float
    masks: float

    @property
    def is_small(self) -> bool:
        """Whether it is within the tolerances, and anything has been compared."""
        return (
            self.boxes <= BOX_TOLERANCE
            and max(self.scores, self.masks) <= SCORE_TOLERANCE
            and (self.compared > 0 or self.expected == 0)
        )


def compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> Difference:
    """Compare detections, each with the nearest of its class in the other list.

    One without a near one is left out where its score is, but for rounding, the lowest: there the
    list may end before it or after it.

    Args:
        expected, found: boxes (N, 4), classes (N,), scores (N,) and perhaps masks (N, 1, M, M).
    """
    compared, *differences = _differences(expected, found)
    _, *back = _differences(found, expected)
    largest = [max(pair) for pair in zip(differences, back, strict=True)]
    return Difference(len(expected["scores"]), len(found["scores"]), compared, *largest)


def _differences(these: dict[str, Tensor], others: dict[str, Tensor]) -> tuple[float, ...]:
    """The number of these compared, and the largest differences of their boxes, scores, masks."""
    if len(these["scores"]) == 0:
        return 0, 0.0, 0.0, 0.0
    if len(others["scores"]) == 0:
        return len(these["scores"]), math.inf, math.inf, 0.0
    boxes = (these["boxes"][:, None] - others["boxes"]).abs().amax(dim=2)
    scores = (these["scores"][:, None] - others["scores"]).abs()
    boxes[these["classes"][:, None] != others["classes"]] = math.inf
    distances = torch.maximum(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE)
    distance, nearest = distances.min(dim=1)
    is_last = these["scores"] <= these["scores"].min() + _TIE
    (compared,) = torch.where((distance <= 1) | ~is_last)
    if len(compared) == 0:
        return 0, 0.0, 0.0, 0.0
    pairs = compared, nearest[compared]
    masks = 0.0
    if "masks" in these:
        masks = float((these["masks"][pairs[0]] - others["masks"][pairs[1]]).abs().max())
    return len(compared), float(boxes[pairs].max()), float(scores[pairs].max()), masks


def compare_features(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Return the largest difference of feature maps, in units of the largest of their level."""
    return max(
        float((features - found[level]).abs().max() / features.abs().max())
        for level, features in expected.items()
    )


@dataclass(frozen=True)
class Verification:
    """An exported file compared with its model on images. Built by :func:`verify_file`."""

    header: tuple[str, ...]
    rows: list[tuple]  # one for each image
    errors: list[str]  # one for each image whose difference is too large

    def table(self) -> str:
        """Return one line for each image."""
        return tabulate(self.rows, self.header, floatfmt=".1e")

    def check(self) -> None:
        """Raise a UserError if a difference is larger than its tolerance."""
        if self.errors:
            raise UserError(self.errors[0])


def verify_file(
    model: nn.Module, path: str, images: dict[str, Tensor], *, dynamic: bool = True
) -> Verification:
    """Run an exported file and the model on the same images, and compare what they return.

    Args:
        model: the model, in evaluation mode.
        path: written by :func:`apa_det.export.export_file`.
        images: by name, shape (C, H, W) each. The first one is the one of the export.
        dynamic: whether the file accepts images of any size: then a cropped image is added, else
            images of another size than the first one are left out.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    name, first = next(iter(images.items()))
    if dynamic:
        _, height, width = first.shape
        cropped = first[:, : height * 3 // 4, : width * 2 // 3].contiguous()
        images = {**images, f"{name}, cropped": cropped}
    else:
        images = {name: image for name, image in images.items() if image.shape == first.shape}
    if path.endswith(".pt2"):
        return _verify_features(model, path, images)
    return _verify_detections(model, path, images)


def _verify_detections(model: nn.Module, path: str, images: dict[str, Tensor]) -> Verification:
    detector, exported = Detector(model), load_exported(path)
    rows, errors = [], []
    for name, image in images.items():
        difference = compare(detector(image), exported(image))
        rows.append((name, _size(image), *difference))
        if not difference.is_small:
            errors.append(
                f"{path} does not detect the same as the model in {name}: boxes differ by up to "
                f"{difference.boxes:.3g} pixels and scores by {difference.scores:.2g}; the "
                f"tolerances are {BOX_TOLERANCE} and {SCORE_TOLERANCE}."
            )
    header = ("image", "size", "model's", "file's", "compared", "boxes [px]", "scores", "masks")
    return Verification(header, rows, errors)


def _verify_features(model: nn.Module, path: str, images: dict[str, Tensor]) -> Verification:
    backbone, exported = Backbone(model), torch.export.load(path).module()
    rows, errors = [], []
    for name, image in images.items():
        batch = backbone.batch(image)
        with torch.no_grad():
            difference = compare_features(backbone(batch), exported(batch))
        rows.append((name, _size(batch[0]), difference))
        if not difference <= FEATURE_TOLERANCE:
            errors.append(
                f"{path} does not give the features of the model for {name}: they differ by up to "
                f"{difference:.2g} of the largest; the tolerance is {FEATURE_TOLERANCE}."
            )
    return Verification(("image", "size, padded", "features, of the largest"), rows, errors)


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"


def load_exported(file: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """What runs an exported detector, a .ts or .onnx file, on an image (C, H, W).

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    if not file.endswith(".onnx"):
        module = torch.jit.load(file)
        return torch.no_grad()(lambda image: module(image))
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "ONNX files are run by the package onnxruntime: pip install 'apa_det[export]'."
        ) from error
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"image": image.cpu().numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run
