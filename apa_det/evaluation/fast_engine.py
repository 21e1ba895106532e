"""LVIS evaluation with ultrafast-pycocotools: the results of lvis-api in a fraction of its time."""

from itertools import pairwise

import numpy as np

from ..errors import MissingPackageError
from ..utils.json_files import gc_paused
from ..utils.progress import track
from .detections import Detections
from .ground_truth import GroundTruth
from .result import (
    AREA_RANGES,
    FALSE_POSITIVE,
    IGNORED,
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    TRUE_POSITIVE,
    Matches,
)
from .selection import Selection, select

VERSION = "0.1.14"
_INSTALL = f"pip install ultrafast-pycocotools=={VERSION}"

try:
    import ultrafast_pycocotools
    from ultrafast_pycocotools import _ufcoco as native
except ImportError as error:
    raise MissingPackageError(
        f"Fast evaluation needs ultrafast-pycocotools ({error}). Run: {_INSTALL}"
    ) from error
if ultrafast_pycocotools.__version__ != VERSION:  # the native module is not a stable interface
    raise MissingPackageError(
        f"Fast evaluation needs ultrafast-pycocotools {VERSION}, got "
        f"{ultrafast_pycocotools.__version__}. Run: {_INSTALL}"
    )

_NO_MASK = {"counts": b""}
_OUTCOMES = np.empty(3, np.uint8)  # maps the engine's codes to ours
_OUTCOMES[native.OUTCOME_FALSE_POSITIVE] = FALSE_POSITIVE
_OUTCOMES[native.OUTCOME_TRUE_POSITIVE] = TRUE_POSITIVE
_OUTCOMES[native.OUTCOME_IGNORED] = IGNORED
# Masks that are in the engine at once; each takes about a kilobyte.
_MASKS_AT_ONCE = 200_000


@gc_paused()
def run(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: int | None,
    max_dets_per_category: int | None,
    matches: bool,
) -> tuple[np.ndarray, np.ndarray, Matches | None]:
    """Evaluate with the native part of ultrafast-pycocotools.

    The arguments are those of :func:`apa_det.evaluation.evaluate`. Limits and federated annotation
    are applied here, in NumPy. Categories are independent, so many masks are evaluated in several
    ranges of categories.

    Returns:
        ``precision``, ``recall`` and ``matches`` of :class:`apa_det.evaluation.Evaluation`.
    """
    chosen = select(truth, detections, max_dets, max_dets_per_category)
    at_once = len(chosen) if iou_type == "bbox" else _MASKS_AT_ONCE
    precisions, recalls, matched = [], [], []
    ranges = _ranges(chosen, len(truth.category_ids), at_once)
    for categories in track(ranges, f"Matching {iou_type}", "parts"):
        inside = (chosen.categories >= categories.start) & (chosen.categories < categories.stop)
        part = _Part(truth, detections, chosen.take(inside), categories, iou_type)
        curves = part.engine.run()
        del curves["scores"]  # unused, and as large as the precision
        precisions.append(curves["precision"][..., 0])
        recalls.append(curves["recall"][..., 0])
        if matches:
            matched.append(part.matches())
    return (
        precisions[0] if len(precisions) == 1 else np.concatenate(precisions, axis=2),
        recalls[0] if len(recalls) == 1 else np.concatenate(recalls, axis=1),
        _joined(truth, detections, matched) if matches else None,
    )


def _ranges(chosen: Selection, num_categories: int, at_once: int) -> list[range]:
    """Split the categories into ranges with about ``at_once`` detections each."""
    totals = np.cumsum(np.bincount(chosen.categories, minlength=num_categories))
    cuts = np.searchsorted(totals, np.arange(at_once, len(chosen), max(at_once, 1))) + 1
    return [range(a, b) for a, b in pairwise(np.unique([0, *cuts, num_categories]).tolist())]


class _Part:
    """The native engine with a range of categories and their detections."""

    def __init__(
        self,
        truth: GroundTruth,
        detections: Detections,
        chosen: Selection,
        categories: range,
        iou_type: str,
    ):
        self._limit = max(1, len(chosen))  # no limit: it has been applied already
        annotations = np.flatnonzero(
            truth.has_area
            & (truth.annotation_categories >= categories.start)
            & (truth.annotation_categories < categories.stop)
        )
        with_masks = iou_type != "bbox"
        if with_masks:
            table, self._rows = _mask_records(truth, detections, chosen, annotations)
        else:
            table, self._rows = _box_table(detections, chosen)
        # The engine gets indices of images and categories, not ids.
        sizes = {i: tuple(size) for i, size in enumerate(truth.image_sizes.tolist())}
        self.engine = native.Evaluator(
            _annotation_records(truth, annotations, with_masks),
            table,
            sizes if with_masks else {},
            list(range(len(truth.image_ids))),
            list(categories),
            IOU_THRESHOLDS.tolist(),
            RECALL_THRESHOLDS.tolist(),
            [self._limit],
            [[float(low), float(high)] for low, high in AREA_RANGES],
            True,
            iou_type,
            [],
        )
        images, indices = np.divmod(truth.not_exhaustive, len(truth.category_ids))
        self.engine.configure_lvis(
            truth.ignore[annotations].tolist(),
            list(zip(images.tolist(), indices.tolist(), strict=True)),
        )

    def matches(self) -> dict[str, np.ndarray]:
        """Return the columns of ``Matches`` without ``matched``, by category, image and score."""
        outcomes = self.engine.outcomes(0, self._limit)["outcome"]
        instances, _ = self.engine.per_instance(0, 0, self._limit)
        return {
            "detections": self._rows[instances["dt_id"] - 1],
            "outcomes": _OUTCOMES[outcomes],
            "annotations": np.where(instances["gt_id"] > 0, instances["gt_id"] - 1, -1),
            "ious": instances["iou"],
        }


def _annotation_records(truth: GroundTruth, annotations: np.ndarray, with_masks: bool) -> list:
    """Return annotation records for the engine, with the index + 1 as ``id``."""
    columns = (
        (annotations + 1).tolist(),
        truth.annotation_images[annotations].tolist(),
        truth.annotation_categories[annotations].tolist(),
        truth.areas[annotations].tolist(),
    )
    if with_masks:
        key, shapes = "segmentation", [truth.segmentations[i] for i in annotations.tolist()]
    else:
        key, shapes = "bbox", truth.boxes[annotations].tolist()
    return [
        {"id": i, "image_id": image, "category_id": category, "area": area, key: shape}
        for i, image, category, area, shape in zip(*columns, shapes, strict=True)
    ]


def _box_table(detections: Detections, chosen: Selection) -> tuple[object, np.ndarray]:
    """Return the engine's table of detections, and the index of each in ``detections``."""
    table = np.empty((len(chosen), 7), np.float64)
    table[:, 0] = chosen.images
    table[:, 1:5] = detections.boxes[chosen.rows]
    table[:, 5] = detections.scores[chosen.rows]
    table[:, 6] = chosen.categories
    has_area = _has_area(table[:, 3] * table[:, 4])
    return native.load_compact_array(table[has_area]), chosen.rows[has_area]


def _mask_records(
    truth: GroundTruth, detections: Detections, chosen: Selection, annotations: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """Return detection records for the engine, and the index of each in ``detections``.

    Records whose image has no annotation of the category get an area, but no mask: there is nothing
    to match.
    """
    rles = detections.masks.rles(chosen.rows)
    areas = native.area(rles).astype(np.float64)
    width = len(truth.category_ids)
    pairs = truth.annotation_images[annotations] * width + truth.annotation_categories[annotations]
    alone = ~np.isin(chosen.images * width + chosen.categories, pairs)
    for i in np.flatnonzero(alone).tolist():
        rles[i] = _NO_MASK
    has_area = _has_area(areas)
    chosen = chosen.take(has_area)
    columns = (
        chosen.images.tolist(),
        chosen.categories.tolist(),
        detections.scores[chosen.rows].astype(np.float64).tolist(),
        areas[has_area].tolist(),
        [rles[i] for i in np.flatnonzero(has_area).tolist()],
    )
    records = [
        {"id": i, "image_id": image, "category_id": k, "score": s, "area": a, "segmentation": rle}
        for i, (image, k, s, a, rle) in enumerate(zip(*columns, strict=True), 1)
    ]
    return records, chosen.rows


def _has_area(areas: np.ndarray) -> np.ndarray:
    return (areas > 0) & (areas < np.inf)  # lvis-api skips the others


def _joined(truth: GroundTruth, detections: Detections, parts: list[dict]) -> Matches:
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(detections.image_ids[columns["detections"]], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    matched = np.zeros(len(truth.annotation_ids), bool)
    matched[columns["annotations"][columns["annotations"] >= 0]] = True
    return Matches(**columns, matched=matched)
