"""Result files of any detectors, evaluated on one dataset and set side by side."""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from tabulate import tabulate

from ..data.frequency import FrequencyGroups
from ..data.lvis_format import relative_file_name
from .engines import IOU_TYPES, evaluate
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .misses import PictureResults, picture_results, worst_pictures
from .reliability import Calibration, calibrate
from .result import Evaluation
from .result_files import read_results

__all__ = ["Comparison", "FileResults", "TaskResults", "compare", "format_number"]

logger = logging.getLogger(__name__)

_BY_SIZE = ("ARs@", "ARm@", "ARl@")  # metrics that are left out of the table
_COLUMNS = 13  # of metrics in one table


@dataclass(frozen=True)
class TaskResults:
    """What one result file reaches by one IoU type. All numbers are in percent."""

    metrics: dict[str, float]  # NaN: the ground truth has nothing that counts for it
    categories: list[dict]  # as Evaluation.per_category gives them
    precision: dict[str, np.ndarray]  # by group: (R,) mean over the IoU thresholds
    precision50: dict[str, np.ndarray]  # by group: (R,) at IoU 0.5
    calibration: dict[str, Calibration]  # by group; empty without details


@dataclass
class FileResults:
    """What one result file reaches."""

    name: str  # the shortest that tells the files apart
    path: str
    num_detections: int
    tasks: dict[str, TaskResults] = field(default_factory=dict)  # by IoU type
    pictures: list[PictureResults] = field(default_factory=list)


@dataclass
class Comparison:
    """Result files side by side. Made by :func:`compare`."""

    gt_file: str
    ground_truth: GroundTruth
    iou_types: tuple[str, ...]
    engine: str  # the one that ran
    max_dets: int | None  # for each picture; None: no limit
    recall_thresholds: np.ndarray  # (R,), from 0 to 1
    categories_evaluated: dict[str, int]  # by group: those with ground truth that counts
    files: list[FileResults]
    image_root: str | os.PathLike | None = None

    def table(self, iou_type: str) -> str:
        """A row for each file, a column for each metric, in percent; "–" where undefined."""
        files = [f for f in self.files if iou_type in f.tasks]
        tables = []
        for names in self.table_metrics(iou_type):
            rows = [
                [f.name, *(format_number(f.tasks[iou_type].metrics[n], 2) for n in names)]
                for f in files
            ]
            align = ("left", *["right"] * len(names))
            headers = [iou_type, *names]
            tables.append(tabulate(rows, headers, colalign=align, disable_numparse=True))
        return "\n\n".join(tables)

    def table_metrics(self, iou_type: str) -> list[list[str]]:
        """The names of the metrics but for recalls by size, in tables that are not too wide."""
        metrics = next(f.tasks[iou_type].metrics for f in self.files if iou_type in f.tasks)
        names = [name for name in metrics if not name.startswith(_BY_SIZE)]
        return [names[i : i + _COLUMNS] for i in range(0, len(names), _COLUMNS)]

    def describe(self) -> str:
        """What was evaluated, in one line."""
        truth = self.ground_truth
        limit = "all detections" if self.max_dets is None else f"at most {self.max_dets} detections"
        groups = ", ".join(
            f"{self.categories_evaluated[name]:,} {text}"
            for name, text in zip(truth.groups.names, truth.groups.labels, strict=True)
        )
        return (
            f"{self.gt_file}: {len(truth.image_ids):,} pictures, {limit} of each; "
            f"{truth.counted.sum():,} objects of {groups} categories; engine {self.engine}."
        )

    def summary(self) -> dict:
        """What was evaluated and all metrics in percent, ready for JSON; None where undefined."""
        truth = self.ground_truth
        return {
            "ground_truth": self.gt_file,
            "pictures": len(truth.image_ids),
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
                    **{
                        iou_type: {n: None if math.isnan(v) else v for n, v in t.metrics.items()}
                        for iou_type, t in f.tasks.items()
                    },
                }
                for f in self.files
            ],
        }


def compare(
    gt_file: str | os.PathLike,
    result_files: Sequence[str | os.PathLike],
    iou_types: Sequence[str] | None = None,
    *,
    groups: FrequencyGroups | None = None,
    count_from: str | os.PathLike | None = None,
    engine: str = "fast",
    max_dets: int | None = 300,
    fixed: bool = False,
    pooled: bool = False,
    details: bool = False,
    image_root: str | os.PathLike | None = None,
    num_pictures: int = 6,
) -> Comparison:
    """
    Evaluate result files on one dataset by LVIS's rules.

    One file's detections are held at a time.

    Args:
        gt_file: ground truth in LVIS format; or in COCO format, where every picture counts as
            searched for every category (see :func:`apa_det.data.coco_to_lvis`).
        result_files: see :func:`read_results`.
        iou_types: of "bbox", "segm" and "boundary". None: "bbox", and "segm" of the files that
            have masks, if the ground truth has them.
        groups: the frequency groups. None: LVIS's.
        count_from: training set in LVIS or COCO format, to take the image counts from.
        engine: "fast", or "lvis" for lvis-api.
        max_dets: the detections with the highest scores that count for each picture. None: all.
        fixed: also AP-fixed, which limits detections by category instead of by picture.
        pooled: also AP-pool, of the detections of all categories ranked together.
        details: also keep what :func:`write_report` shows.
        image_root: folder that the file names of the pictures are relative to. None: the report
            goes without pictures.
        num_pictures: how many pictures it shows, those in which the first file misses the most.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken; see :func:`read_results`.
    """
    truth = GroundTruth.from_file(gt_file, groups, count_from=count_from)
    if truth.verified is None:
        logger.info("%s is in COCO format: all categories count in every picture.", gt_file)
    if not truth.counted.any():
        raise ValueError(f"{gt_file} has no annotations that count: there is nothing to evaluate")
    if image_root is not None:
        _check_image_root(image_root, truth)
    files: list[FileResults] = []
    pictures = None
    for path, name in zip(result_files, short_names(result_files), strict=True):
        detections = read_results(path, truth, iou_types)
        if not len(detections):
            logger.warning("%s holds no detection: its metrics are 0.", path)
        result = FileResults(name, os.fspath(path), len(detections))
        has_masks = detections.masks is not None and truth.segmentations is not None
        wanted = iou_types or ("bbox", "segm")[: 1 + has_masks]
        for iou_type in sorted(wanted, key="segm".__eq__):  # by which pictures are chosen
            logger.info("%s: evaluating %s of %d detections", name, iou_type, len(detections))
            evaluation = evaluate(
                truth,
                detections,
                iou_type,
                engine=engine,
                max_dets=max_dets,
                matches=details or pooled,
            )
            extras = pooled_ap(evaluation) if pooled else {}
            if fixed:
                extras |= fixed_ap(truth, detections, iou_type, engine=engine)
            result.tasks[iou_type] = _task_results(
                evaluation, extras, calibrate(evaluation) if details else {}
            )
        if details and image_root is not None:
            if pictures is None:
                pictures = worst_pictures(evaluation, num_pictures)
            result.pictures = picture_results(evaluation, detections, pictures)
        files.append(result)
        del detections  # before the next file is read
    return Comparison(
        gt_file=os.fspath(gt_file),
        ground_truth=truth,
        iou_types=tuple(t for t in IOU_TYPES if any(t in f.tasks for f in files)),
        engine=evaluation.engine,
        max_dets=max_dets,
        recall_thresholds=evaluation.recall_thresholds,
        categories_evaluated=evaluation.categories_evaluated(),
        files=files,
        image_root=image_root,
    )


def _check_image_root(image_root: str | os.PathLike, truth: GroundTruth) -> None:
    first = os.path.join(image_root, relative_file_name(truth.images[0]))
    if not os.path.isfile(first):
        raise FileNotFoundError(
            f"{first}, the first picture of the ground truth, does not exist: the image root must "
            "be the folder that its file names are relative to"
        )


def _task_results(
    evaluation: Evaluation, extras: dict[str, float], calibration: dict[str, Calibration]
) -> TaskResults:
    """In percent."""
    metrics = {**evaluation.metrics(), **evaluation.group_recall(), **extras}
    fractions = ("AP", "AP50", "AR")
    groups = evaluation.ground_truth.groups.names
    return TaskResults(
        metrics={name: 100 * value for name, value in metrics.items()},
        categories=[
            {key: 100 * value if key in fractions else value for key, value in row.items()}
            for row in evaluation.per_category()
        ],
        precision={group: 100 * evaluation.group_precision(group) for group in groups},
        precision50={group: 100 * evaluation.group_precision(group, 0.5) for group in groups},
        calibration=calibration,
    )


def format_number(value: float, digits: int = 1) -> str:
    """ "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def short_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """For each path the part that tells it from the others: a folder, or the file's name."""
    parts = [PurePath(os.path.abspath(path)).parts for path in paths]
    shared = _shared_length(parts)
    tails = [p[min(shared, len(p) - 1) :] for p in parts]
    if shared:
        last = _shared_length([tail[::-1] for tail in tails])
        heads = [tail[: len(tail) - last] for tail in tails]
        tails = heads if all(heads) else tails
    names = [re.sub(r"(\.json)?(\.gz)?$|\.pth$", "", "/".join(tail)) for tail in tails]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _shared_length(parts: list[tuple[str, ...]]) -> int:
    """How many parts at the start are the same in all."""
    return len(os.path.commonprefix(parts))
