"""Side-by-side evaluation of result files of any detectors on one dataset."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from ..data.frequency import FrequencyGroups
from ..data.image_names import relative_file_name
from ..errors import MissingFileError, UserError
from .agnostic_recall import class_agnostic_recall
from .comparison import NUM_RESAMPLES, Comparison, FileResults, IouTypeResults
from .engines import IOU_TYPES, evaluate
from .error_analysis import ErrorAnalysis, analyze_errors
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .misses import image_results, worst_images
from .reliability import ReliabilityBins, reliability_bins
from .resampling import draw_image_weights, resampled_ap
from .result import Evaluation
from .result_files import read_results_in
from .subset import read_image_ids

logger = logging.getLogger(__name__)


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
    image_ids: str | os.PathLike | None = None,
) -> Comparison:
    """Evaluate result files on one dataset with the LVIS metric.

    Only one file's detections are in memory at a time. With several files, the differences to the
    first get bootstrap intervals.

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
        image_ids: file that lists the images to evaluate, see :func:`read_image_ids`; detections on
            other images are left out. None: all images.

    Raises:
        UserError: a file is missing or invalid (see :func:`read_results`), the ground truth has
            no annotations that count, or ``image_root`` does not contain its first image.
    """
    truth = dataset = GroundTruth.from_file(gt_file, groups, count_from=count_from)
    if not len(truth.annotation_ids):
        raise UserError(
            f"{gt_file} has no annotations to evaluate: the ground truth of a test set is only on "
            "its evaluation server. Give a file with annotations."
        )
    chosen = None
    if image_ids is not None:
        chosen = read_image_ids(image_ids, dataset)
        truth = dataset.restricted_to(chosen)
    if not truth.counted.any():
        of_list = "" if image_ids is None else f" on the images of {image_ids}"
        raise UserError(
            f"{gt_file} has no annotations to evaluate{of_list}. Annotations need an area > 0 and "
            "must not be marked 'ignore'."
        )
    if truth.verified is None:
        logger.info("%s is in COCO format: every category counts in every image.", gt_file)
    if image_root is not None:
        _check_image_root(image_root, truth)
    weights = None
    if len(result_files) > 1:
        weights = draw_image_weights(len(truth.image_ids), NUM_RESAMPLES)
    files, worst = [], None
    for path, name in zip(result_files, short_names(result_files), strict=True):
        detections, left_out = read_results_in(chosen, path, dataset, iou_types)
        if left_out:
            logger.info(
                "%s: %s of %s detections are on images that are not in %s and are left out.",
                *(name, f"{left_out:,}", f"{left_out + len(detections):,}", image_ids),
            )
        if not len(detections):
            logger.warning("%s has no detections: all its metrics are 0.", path)
        result = FileResults(name, os.fspath(path), len(detections), left_out)
        has_masks = detections.masks is not None and truth.segmentations is not None
        wanted = iou_types or ("bbox", "segm")[: 1 + has_masks]
        for iou_type in sorted(wanted, key="segm".__eq__):  # segm last: it selects the worst images
            logger.info("%s: evaluating %s, %s detections", name, iou_type, f"{len(detections):,}")
            matches = details or weights is not None
            options = {"engine": engine, "max_dets": max_dets, "matches": matches}
            evaluation = evaluate(truth, detections, iou_type, **options)
            extras = pooled_ap(truth, detections, iou_type, engine=engine) if pooled else {}
            if fixed:
                extras |= fixed_ap(truth, detections, iou_type, engine=engine)
            bins = reliability_bins(evaluation) if details else {}
            recalls, analysis = {}, None
            if details and iou_type != "boundary":
                recalls = class_agnostic_recall(truth, detections, iou_type)
                analysis = analyze_errors(evaluation, detections)
            resampled = {} if weights is None else resampled_ap(evaluation, weights)
            result.by_iou_type[iou_type] = _iou_type_results(
                evaluation, extras, bins, recalls, resampled, analysis
            )
        if details and image_root is not None:
            if worst is None:
                worst = worst_images(evaluation, num_images)
            result.worst_images = image_results(evaluation, detections, worst)
        files.append(result)
        ran, evaluated = evaluation.engine, evaluation.categories_evaluated()
        recall_thresholds = evaluation.recall_thresholds
        del detections, evaluation  # before the next file is read
    return Comparison(
        gt_file=os.fspath(gt_file),
        ground_truth=truth,
        iou_types=tuple(t for t in IOU_TYPES if any(t in f.by_iou_type for f in files)),
        engine=ran,
        max_dets=max_dets,
        recall_thresholds=recall_thresholds,
        categories_evaluated=evaluated,
        files=files,
        image_root=image_root,
        image_ids_file=None if image_ids is None else os.fspath(image_ids),
    )


def _check_image_root(image_root: str | os.PathLike, truth: GroundTruth) -> None:
    first = os.path.join(image_root, relative_file_name(truth.images[0]))
    if not os.path.isfile(first):
        raise MissingFileError(
            f"{first}, the first image of the ground truth, does not exist. Set the image root to "
            "the folder that the ground truth's file names are relative to."
        )


def _iou_type_results(
    evaluation: Evaluation,
    extras: dict[str, float],
    reliability: dict[str, ReliabilityBins],
    agnostic_recall: dict[str, float],
    resampled: dict[str, np.ndarray],
    analysis: ErrorAnalysis | None,
) -> IouTypeResults:
    metrics = {**evaluation.metrics(), **evaluation.group_recall(), **extras}
    fractions = ("AP", "AP50", "AR")
    groups = evaluation.ground_truth.groups.names
    return IouTypeResults(
        metrics=_percent(metrics),
        categories=[
            {key: 100 * value if key in fractions else value for key, value in row.items()}
            for row in evaluation.per_category()
        ],
        precision={group: 100 * evaluation.group_precision(group) for group in groups},
        precision50={group: 100 * evaluation.group_precision(group, 0.5) for group in groups},
        reliability=reliability,
        agnostic_recall=_percent(agnostic_recall),
        resampled=_percent(resampled),
        analysis=analysis,
    )


def _percent(fractions: dict) -> dict:
    return {name: 100 * value for name, value in fractions.items()}


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
