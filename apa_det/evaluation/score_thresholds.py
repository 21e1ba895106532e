"""Score thresholds with the highest F1."""

import json
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tabulate import tabulate

from ..errors import UserError
from ..text import format_number
from ..utils.atomic_files import open_atomic
from .result import IGNORED, TRUE_POSITIVE, Evaluation

MIN_OBJECTS = 10
"""A class with fewer objects in the images gets the threshold of its frequency group."""


@dataclass(frozen=True)
class Threshold:
    """A score threshold, and what exceeds it: at IoU 0.5, detections of the same class match.

    Attributes:
        value: the threshold; NaN without a true positive.
        f1, precision, recall: as fractions.
        num_objects: number of objects in the images.
    """

    value: float
    f1: float
    precision: float
    recall: float
    num_objects: int


@dataclass(frozen=True)
class ThresholdFit:
    """Thresholds of the frequency groups, and of classes with enough objects.

    Attributes:
        iou_type: "bbox" or "segm", by which detections were matched.
        groups: by group name; "all" for all classes together.
        classes: by class name; empty if only the groups were asked for.
        class_groups: the group of each class; "" without one.
    """

    iou_type: str
    groups: dict[str, Threshold]
    classes: dict[str, Threshold]
    class_groups: dict[str, str]

    def text(self) -> str:
        """Return ``TEST.SCORE_THRESH_PER_GROUP`` of the groups."""
        return ",".join(
            [
                *(f"{name}:{self._value(name):.6g}" for name in self.groups if name != "all"),
                *([f"{self._value('all'):.6g}"] if "" in self.class_groups.values() else []),
            ]
        )

    def by_class(self) -> dict[str, float]:
        """Return the threshold of each class: its own, else that of its group."""
        return {
            name: self._of_class(name, group or "all") for name, group in self.class_groups.items()
        }

    def write(self, path: str | os.PathLike) -> None:
        """Write :meth:`by_class` as a JSON file for ``TEST.SCORE_THRESH_PER_GROUP``."""
        with open_atomic(path) as file:
            json.dump(self.by_class(), file, indent=1)

    def table(self) -> str:
        """Return a table of the groups; – without a true positive."""
        rows = [
            [
                name,
                format_number(t.value, 4),
                *(format_number(100 * value, 1) for value in (t.f1, t.precision, t.recall)),
                t.num_objects,
            ]
            for name, t in self.groups.items()
        ]
        headers = ["classes", "threshold", "F1", "precision", "recall", "objects"]
        align = ("left", *["right"] * (len(headers) - 1))
        return tabulate(rows, headers, colalign=align, disable_numparse=True)

    def _of_class(self, name: str, group: str) -> float:
        own = self.classes.get(name)
        if own is None or np.isnan(own.value) or own.num_objects < MIN_OBJECTS:
            return self._value(group)
        return own.value

    def _value(self, group: str) -> float:
        value = self.groups[group].value
        return self.groups["all"].value if np.isnan(value) else value


def choose_thresholds(
    evaluation: Evaluation, by: Literal["group", "class"] = "group"
) -> ThresholdFit:
    """Choose the thresholds with the highest F1 of an evaluation with ``matches``.

    Raises:
        UserError: there is no true positive.
    """
    truth, outcomes = evaluation.ground_truth, evaluation.matches.outcomes[:, 0]
    judged = outcomes != IGNORED
    scores = evaluation.scores[judged]
    correct = outcomes[judged] == TRUE_POSITIVE
    categories = evaluation.match_categories[judged]
    number = len(truth.category_ids)
    objects = np.bincount(truth.annotation_categories[truth.counted], minlength=number)

    def fit(members: np.ndarray) -> Threshold:
        chosen = members[categories]
        return best_threshold(scores[chosen], correct[chosen], int(objects[members].sum()))

    names = (*truth.groups.names, "")  # "" for -1, no group
    groups = {name: fit(truth.category_groups == i) for i, name in enumerate(names[:-1])}
    groups["all"] = fit(np.ones(number, bool))
    if np.isnan(groups["all"].value):
        raise UserError("No detection matches an object of these images: choose no thresholds.")
    classes = {}
    if by == "class":
        ids = np.arange(number)
        classes = {name: fit(ids == i) for i, name in enumerate(truth.category_names)}
    class_groups = dict(
        zip(truth.category_names, (names[g] for g in truth.category_groups), strict=True)
    )
    return ThresholdFit(evaluation.iou_type, groups, classes, class_groups)


def best_threshold(scores: np.ndarray, correct: np.ndarray, num_objects: int) -> Threshold:
    """Return the threshold with the highest F1 = 2 TP / (detections + objects).

    Detections are those whose scores exceed the threshold. It lies between the scores of the last
    detection above it and the next one; of several, the highest is chosen.

    Args:
        scores: (N,), >= 0.
        correct: (N,) bool, whether a detection is a true positive.
        num_objects: number of objects that could be detected.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order].astype(np.float64), np.cumsum(correct[order])
    counts = np.arange(1, len(scores) + 1)
    following = np.append(scores[1:], 0.0)
    f1 = np.where(following < scores, 2 * hits / (counts + num_objects), 0.0)  # not between equals
    if not len(f1) or f1.max() == 0:
        return Threshold(np.nan, 0.0, np.nan, 0.0, num_objects)
    best = int(f1.argmax())
    return Threshold(
        _short_number(following[best], scores[best]),
        float(f1[best]),
        float(hits[best] / counts[best]),
        float(hits[best] / num_objects),
        num_objects,
    )


def _short_number(low: float, high: float) -> float:
    """Return a number with few digits in (low, high), near the middle."""
    middle = (low + high) / 2
    rounded = (float(f"{middle:.{digits}g}") for digits in range(2, 17))
    return next((value for value in rounded if low < value < high), low)
