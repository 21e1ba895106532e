"""Compare the outputs of an exported file with those of the model."""

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

BOX_TOLERANCE = 0.01
"""Largest difference of box coordinates, in pixels."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of scores and of mask probabilities."""
FEATURE_TOLERANCE = 1e-4
"""Largest difference of features, relative to the largest feature of their level."""

# Rounding decides which of two detections with scores this close comes last in the list.
_TIE = 1e-6


class Difference(NamedTuple):
    """The differences between two lists of detections in one image.

    Attributes:
        expected, actual: number of detections in each list.
        compared: number of expected detections that were compared.
        boxes: largest difference of box coordinates, in pixels.
        scores, masks: largest differences of scores and of mask probabilities.
    """

    expected: int
    actual: int
    compared: int
    boxes: float
    scores: float
    masks: float

    @property
    def is_small(self) -> bool:
        """Whether all differences are within the tolerances, and something was compared."""
        return (
            self.boxes <= BOX_TOLERANCE
            and max(self.scores, self.masks) <= SCORE_TOLERANCE
            and (self.compared > 0 or self.expected == 0)
        )


def compare(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> Difference:
    """Compare each detection with the nearest one of its class in the other list.

    Detections with the lowest score of a list (up to rounding) are ignored if they have no near
    one: rounding decides which of them the list ends with.

    Args:
        expected, actual: boxes (N, 4), classes (N,), scores (N,) and optionally masks (N, 1, M, M).
    """
    compared, *differences = _differences(expected, actual)
    _, *reverse = _differences(actual, expected)
    largest = [max(pair) for pair in zip(differences, reverse, strict=True)]
    return Difference(len(expected["scores"]), len(actual["scores"]), compared, *largest)


def _differences(these: dict[str, Tensor], others: dict[str, Tensor]) -> tuple[float, ...]:
    """Return the number of detections compared, and the largest box, score and mask difference."""
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


def compare_features(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> float:
    """Return the largest difference of features, relative to the largest one of their level."""
    return max(
        float((features - actual[level]).abs().max() / features.abs().max())
        for level, features in expected.items()
    )


@dataclass(frozen=True)
class Verification:
    """The comparison of an exported file with its model on images, made by :func:`verify_file`."""

    header: tuple[str, ...]
    rows: list[tuple]  # one per image
    errors: list[str]  # one per image with too large a difference

    def table(self) -> str:
        """Return a table with one line per image."""
        return tabulate(self.rows, self.header, floatfmt=".1e")

    def check(self) -> None:
        """Raise a UserError if a difference is larger than its tolerance."""
        if self.errors:
            raise UserError(self.errors[0])


def verify_file(
    model: nn.Module, path: str, images: dict[str, Tensor], *, dynamic: bool = True
) -> Verification:
    """Run an exported file and the model on the same images, and compare their outputs.

    Args:
        model: the model, in evaluation mode.
        path: a file written by :func:`apa_det.export.export_file`.
        images: (C, H, W) each, by name. The first one is the image of the export.
        dynamic: whether the file accepts images of any size. If so, a crop of the first image is
            added; if not, images of other sizes are skipped.

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
    header = ("image", "size", "model", "file", "compared", "boxes [px]", "scores", "masks")
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
                f"{path} does not return the features of the model for {name}: they differ by up "
                f"to {difference:.2g} of the largest one; the tolerance is {FEATURE_TOLERANCE}."
            )
    return Verification(("image", "padded size", "relative difference"), rows, errors)


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"


def load_exported(file: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function that runs an exported detector, .ts or .onnx, on an image (C, H, W).

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
            "Running ONNX files needs the package onnxruntime: pip install 'apa_det[export]'."
        ) from error
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"image": image.cpu().numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run
