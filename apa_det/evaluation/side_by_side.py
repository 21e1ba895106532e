"""Side-by-side evaluation of result files of any detectors on one dataset."""

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
from ..data.image_names import relative_file_name
from ..errors import MissingFileError, UserError
from .engines import IOU_TYPES, evaluate
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .misses import ImageResults, image_results, worst_images
from .reliability import ReliabilityBins, reliability_bins
from .result import Evaluation
from .result_files import read_results

logger = logging.getLogger(__name__)

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


@dataclass
class FileResults:
    """The results of one file."""

    name: str  # the shortest part of the path that differs from the other files
    path: str
    num_detections: int
    by_iou_type: dict[str, IouTypeResults] = field(default_factory=dict)
    worst_images: list[ImageResults] = field(default_factory=list)


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

    def files_with(self, iou_type: str) -> list[FileResults]:
        """Return the files that were evaluated for an IoU type."""
        return [file for file in self.files if iou_type in file.by_iou_type]

    def table(self, iou_type: str) -> str:
        """Return a table in percent with a row per file; "–" if a metric is undefined."""
        tables = []
        for names in self.table_metrics(iou_type):
            rows = [
                [f.name, *(format_number(f.by_iou_type[iou_type].metrics[n], 2) for n in names)]
                for f in self.files_with(iou_type)
            ]
            align = ("left", *["right"] * len(names))
            headers = [iou_type, *names]
            tables.append(tabulate(rows, headers, colalign=align, disable_numparse=True))
        return "\n\n".join(tables)

    def table_metrics(self, iou_type: str) -> list[list[str]]:
        """Return the metric names of each table, without recalls by size."""
        metrics = self.files_with(iou_type)[0].by_iou_type[iou_type].metrics
        names = [name for name in metrics if not name.startswith(_RECALLS_BY_SIZE)]
        return [names[i : i + _MAX_COLUMNS] for i in range(0, len(names), _MAX_COLUMNS)]

    def describe(self) -> str:
        """Return one line about what was evaluated."""
        truth = self.ground_truth
        limit = "all detections" if self.max_dets is None else f"at most {self.max_dets} detections"
        groups = ", ".join(
            f"{self.categories_evaluated[name]:,} {text}"
            for name, text in zip(truth.groups.names, truth.groups.labels, strict=True)
        )
        return (
            f"{self.gt_file}: {len(truth.image_ids):,} images, {limit} per image; "
            f"{truth.counted.sum():,} objects of {groups} categories; engine {self.engine}."
        )

    def summary(self) -> dict:
        """Return all metrics in percent as a JSON-serializable dict; None if undefined."""
        truth = self.ground_truth
        return {
            "ground_truth": self.gt_file,
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
                    **{
                        iou_type: {n: None if math.isnan(v) else v for n, v in t.metrics.items()}
                        for iou_type, t in f.by_iou_type.items()
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
    num_images: int = 6,
) -> Comparison:
    """Evaluate result files on one dataset with the LVIS metric.

    Only one file's detections are in memory at a time.

    Args:
        gt_file: ground truth in LVIS format, or in COCO format, where every category counts in
            every image (see :func:`apa_det.data.coco_to_lvis`).
        result_files: see :func:`read_results`.
        iou_types: "bbox", "segm", "boundary". None: "bbox", and "segm" if the ground truth and the
            file have masks.
        groups: the frequency groups. None: LVIS's.
        count_from: training set in LVIS or COCO format to count the images of each category in.
        engine: "fast", or "lvis" for lvis-api.
        max_dets: maximum number of detections per image. None: no limit.
        fixed: also compute AP-fixed, which limits detections per category instead of per image.
        pooled: also compute AP-pool, with the detections of all categories ranked together and
            without a limit per image.
        details: also keep what :func:`write_report` needs.
        image_root: folder that the ground truth's file names are relative to. None: the report
            shows no images.
        num_images: number of images in the report, those where the first file misses the most.

    Raises:
        UserError: a file is missing or invalid (see :func:`read_results`), the ground truth has
            no annotations that count, or ``image_root`` does not contain its first image.
    """
    truth = GroundTruth.from_file(gt_file, groups, count_from=count_from)
    if not len(truth.annotation_ids):
        raise UserError(
            f"{gt_file} has no annotations to evaluate: the ground truth of a test set is only on "
            "its evaluation server. Give a file with annotations."
        )
    if not truth.counted.any():
        raise UserError(
            f"{gt_file} has no annotations to evaluate. Annotations need an area > 0 and must not "
            "be marked 'ignore'."
        )
    if truth.verified is None:
        logger.info("%s is in COCO format: every category counts in every image.", gt_file)
    if image_root is not None:
        _check_image_root(image_root, truth)
    files, worst = [], None
    for path, name in zip(result_files, short_names(result_files), strict=True):
        detections = read_results(path, truth, iou_types)
        if not len(detections):
            logger.warning("%s has no detections: all its metrics are 0.", path)
        result = FileResults(name, os.fspath(path), len(detections))
        has_masks = detections.masks is not None and truth.segmentations is not None
        wanted = iou_types or ("bbox", "segm")[: 1 + has_masks]
        for iou_type in sorted(wanted, key="segm".__eq__):  # segm last: it selects the worst images
            logger.info("%s: evaluating %s, %d detections", name, iou_type, len(detections))
            options = {"engine": engine, "max_dets": max_dets, "matches": details}
            evaluation = evaluate(truth, detections, iou_type, **options)
            extras = pooled_ap(truth, detections, iou_type, engine=engine) if pooled else {}
            if fixed:
                extras |= fixed_ap(truth, detections, iou_type, engine=engine)
            bins = reliability_bins(evaluation) if details else {}
            result.by_iou_type[iou_type] = _iou_type_results(evaluation, extras, bins)
        if details and image_root is not None:
            if worst is None:
                worst = worst_images(evaluation, num_images)
            result.worst_images = image_results(evaluation, detections, worst)
        files.append(result)
        del detections  # before the next file is read
    return Comparison(
        gt_file=os.fspath(gt_file),
        ground_truth=truth,
        iou_types=tuple(t for t in IOU_TYPES if any(t in f.by_iou_type for f in files)),
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
        raise MissingFileError(
            f"{first}, the first image of the ground truth, does not exist. Set the image root to "
            "the folder that the ground truth's file names are relative to."
        )


def _iou_type_results(
    evaluation: Evaluation, extras: dict[str, float], reliability: dict[str, ReliabilityBins]
) -> IouTypeResults:
    metrics = {**evaluation.metrics(), **evaluation.group_recall(), **extras}
    fractions = ("AP", "AP50", "AR")
    groups = evaluation.ground_truth.groups.names
    return IouTypeResults(
        metrics={name: 100 * value for name, value in metrics.items()},
        categories=[
            {key: 100 * value if key in fractions else value for key, value in row.items()}
            for row in evaluation.per_category()
        ],
        precision={group: 100 * evaluation.group_precision(group) for group in groups},
        precision50={group: 100 * evaluation.group_precision(group, 0.5) for group in groups},
        reliability=reliability,
    )


def format_number(value: float, digits: int = 1) -> str:
    """Format a number; "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def short_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Return the part of each path that differs from the others: a folder or the file name."""
    parts = [PurePath(os.path.abspath(path)).parts for path in paths]
    shared = len(os.path.commonprefix(parts))
    tails = [p[min(shared, len(p) - 1) :] for p in parts]
    if shared:
        last = len(os.path.commonprefix([tail[::-1] for tail in tails]))
        heads = [tail[: len(tail) - last] for tail in tails]
        tails = heads if all(heads) else tails
    names = [re.sub(r"(\.json)?(\.gz|\.zip)?$|\.pth$", "", "/".join(tail)) for tail in tails]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
