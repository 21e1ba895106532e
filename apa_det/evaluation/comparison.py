"""The results of a comparison of result files, and their tables."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tabulate import tabulate

from ..text import format_number
from .error_analysis import ErrorAnalysis
from .extras import FIXED_NOTE, POOLED_NOTE
from .ground_truth import GroundTruth
from .misses import ImageResults
from .reliability import ReliabilityBins
from .resampling import Difference

NUM_RESAMPLES = 300  # of the bootstrap
INTERVAL_NOTE = (
    f"In brackets: 95 % bootstrap interval of {NUM_RESAMPLES:,} resamples of the test images, the "
    "same ones for both files. If it contains 0, the difference may be due to the choice of test "
    "images. Differences between two trainings of one detector come on top."
)
AGNOSTIC_NOTE = (
    "Class-agnostic recall: share of the objects, by their group, that the 100 or 300 detections "
    "with the highest scores of an image localize, whatever the predicted class; mean over IoU 0.5 "
    "to 0.95. If it is high for a group with a low AP, its objects are localized, but not "
    "recognized."
)
_RECALLS_BY_SIZE = ("ARs@", "ARm@", "ARl@")  # not in the tables
_MAX_COLUMNS = 13  # metrics per table


@dataclass(frozen=True)
class IouTypeResults:
    """The results of one file for one IoU type, all in percent."""

    metrics: dict[str, float]  # NaN: no ground truth for this metric
    categories: list[dict]  # the rows of Evaluation.per_category
    precision: dict[str, np.ndarray]  # by group: (R,) mean over the IoU thresholds
    precision50: dict[str, np.ndarray]  # by group: (R,) at IoU 0.5
    reliability: dict[str, ReliabilityBins]  # by group; empty without details
    agnostic_recall: dict[str, float]  # class_agnostic_recall; empty without details
    resampled: dict[str, np.ndarray]  # AP and those of the groups: (B,); empty for a single file
    analysis: ErrorAnalysis | None = None  # None for boundaries and without details


@dataclass
class FileResults:
    """The results of one file."""

    name: str  # the shortest part of the path that differs from the other files
    path: str
    num_detections: int
    num_left_out: int = 0  # detections on images that are not evaluated
    by_iou_type: dict[str, IouTypeResults] = field(default_factory=dict)
    worst_images: list[ImageResults] = field(default_factory=list)

    def analyses(self) -> dict[str, ErrorAnalysis]:
        """Return the error analyses by IoU type, boxes first; empty without details."""
        by_iou_type = {iou_type: t.analysis for iou_type, t in self.by_iou_type.items()}
        return {iou_type: analysis for iou_type, analysis in by_iou_type.items() if analysis}


@dataclass
class Comparison:
    """The results of several files on one dataset, made by :func:`compare`."""

    gt_file: str
    ground_truth: GroundTruth
    iou_types: tuple[str, ...]
    engine: str  # "fast" or "lvis", the one that ran
    max_dets: int | None  # per image; None: no limit
    recall_thresholds: np.ndarray  # (R,), from 0 to 1
    categories_evaluated: dict[str, int]  # by group: categories with counted ground truth
    files: list[FileResults]
    image_root: str | os.PathLike | None = None
    image_ids_file: str | None = None  # the list of the evaluated images; None: all

    def files_with(self, iou_type: str) -> list[FileResults]:
        """Return the files that were evaluated for an IoU type."""
        return [file for file in self.files if iou_type in file.by_iou_type]

    def differences(self, iou_type: str) -> list[tuple[FileResults, dict[str, Difference]]]:
        """Return the differences of AP and the groups' APs of each other file to the first.

        In percent, with bootstrap intervals over the images.
        """
        first, *others = self.files_with(iou_type)
        before = first.by_iou_type[iou_type]
        return [
            (file, {name: _difference(before, after, name) for name in before.resampled})
            for file in others
            if (after := file.by_iou_type[iou_type])
        ]

    def text(self) -> str:
        """Return all tables with their notes, and :meth:`describe`."""
        parts = []
        for make_table, notes in (
            (self.table, self.notes()),
            (self.difference_table, [INTERVAL_NOTE]),
            (self.agnostic_table, [AGNOSTIC_NOTE]),
        ):
            if tables := [*filter(None, map(make_table, self.iou_types))]:
                parts += [*tables, *notes]
        return "\n\n".join([*parts, self.describe()])

    def notes(self) -> list[str]:
        """Return sentences that explain AP-fixed and AP-pool, if they were computed."""
        names = self.files[0].by_iou_type[self.iou_types[0]].metrics
        notes = {"AP_fixed": FIXED_NOTE, "AP_pool": POOLED_NOTE}
        return [note for name, note in notes.items() if name in names]

    def table(self, iou_type: str) -> str:
        """Return a table in percent with a row per file; "–" if a metric is undefined."""
        tables = []
        for names in self.table_metrics(iou_type):
            rows = [
                [f.name, *(format_number(f.by_iou_type[iou_type].metrics[n], 2) for n in names)]
                for f in self.files_with(iou_type)
            ]
            tables.append(_table([iou_type, *names], rows))
        return "\n\n".join(tables)

    def table_metrics(self, iou_type: str) -> list[list[str]]:
        """Return the metric names of each table, without recalls by size."""
        metrics = self.files_with(iou_type)[0].by_iou_type[iou_type].metrics
        names = [name for name in metrics if not name.startswith(_RECALLS_BY_SIZE)]
        return [names[i : i + _MAX_COLUMNS] for i in range(0, len(names), _MAX_COLUMNS)]

    def difference_table(self, iou_type: str) -> str:
        """Return a table of :meth:`differences` with a row per file; empty for a single file."""
        rows = [
            [file.name, *(format_difference(difference, 2) for difference in differences.values())]
            for file, differences in self.differences(iou_type)
        ]
        first = self.files_with(iou_type)[0]
        names = first.by_iou_type[iou_type].resampled
        return _table([f"{iou_type}: difference to {first.name}", *names], rows) if rows else ""

    def agnostic_table(self, iou_type: str) -> str:
        """Return a table of the class-agnostic recalls in percent; empty without details."""
        recalls = {
            f.name: f.by_iou_type[iou_type].agnostic_recall for f in self.files_with(iou_type)
        }
        rows = [
            [name, *(format_number(value, 2) for value in values.values())]
            for name, values in recalls.items()
            if values
        ]
        names = [name.replace("_agnostic", "") for name in next(iter(recalls.values()))]
        return _table([f"{iou_type}: class-agnostic", *names], rows) if rows else ""

    def describe(self) -> str:
        """Return one line about what was evaluated."""
        truth = self.ground_truth
        limit = "all detections" if self.max_dets is None else f"at most {self.max_dets} detections"
        groups = ", ".join(
            f"{self.categories_evaluated[name]:,} {text}"
            for name, text in zip(truth.groups.names, truth.groups.labels, strict=True)
        )
        listed = f" of {self.image_ids_file}" if self.image_ids_file else ""
        return (
            f"{self.gt_file}: {len(truth.image_ids):,} images{listed}, {limit} per image; "
            f"{truth.counted.sum():,} objects of {groups} categories; engine {self.engine}."
        )

    def summary(self) -> dict:
        """Return all metrics in percent as a JSON-serializable dict; None if undefined."""
        truth = self.ground_truth
        return {
            "ground_truth": self.gt_file,
            "image_ids": self.image_ids_file,
            "images": len(truth.image_ids),
            "annotations": len(truth.annotation_ids),
            "categories": len(truth.category_ids),
            "categories_evaluated": self.categories_evaluated,
            "engine": self.engine,
            "max_dets": self.max_dets,
            "files": [
                {
                    "name": f.name,
                    "path": f.path,
                    "detections": f.num_detections,
                    "detections_left_out": f.num_left_out,
                    **{
                        iou_type: _or_none({**t.metrics, **t.agnostic_recall})
                        for iou_type, t in f.by_iou_type.items()
                    },
                    **(
                        {"errors": {t: a.summary() for t, a in analyses.items()}}
                        if (analyses := f.analyses())
                        else {}
                    ),
                }
                for f in self.files
            ],
            "differences": [
                {
                    "file": file.name,
                    "iou_type": iou_type,
                    **{name: _or_none(vars(value)) for name, value in differences.items()},
                }
                for iou_type in self.iou_types
                for file, differences in self.differences(iou_type)
            ],
        }


def format_difference(difference: Difference, digits: int = 1) -> str:
    """Format a difference with its interval: "+1.2 [+0.3, +2.0]"; "–" if it is undefined."""
    value, low, high = (
        format_number(number, digits, sign="+")
        for number in (difference.difference, difference.low, difference.high)
    )
    return value if math.isnan(difference.low) else f"{value} [{low}, {high}]"


def _difference(before: IouTypeResults, after: IouTypeResults, name: str) -> Difference:
    return Difference.from_resamples(
        after.metrics[name] - before.metrics[name], after.resampled[name] - before.resampled[name]
    )


def _or_none(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, colalign=align, disable_numparse=True)
