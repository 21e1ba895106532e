"""What an exported file gives, against what the model gives."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BOX_TOLERANCE", "SCORE_TOLERANCE", "Difference", "compare", "load_exported"]

BOX_TOLERANCE = 0.01
"""Of the coordinates of boxes, in pixels."""
SCORE_TOLERANCE = 1e-4
"""Of scores, and of the probabilities in masks."""

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


def load_exported(file: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """What runs an exported detector, a .ts or .onnx file, on an image (C, H, W).

    Raises:
        ImportError: onnxruntime is not installed.
    """
    if not file.endswith(".onnx"):
        module = torch.jit.load(file)
        return torch.no_grad()(lambda image: module(image))
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX files are run by the package onnxruntime: pip install 'apa_det[export]'."
        ) from error
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {"image": image.cpu().numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run
