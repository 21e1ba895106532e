"""The result of an evaluation: precision and recall by category, and the metrics."""

from dataclasses import dataclass

import numpy as np

from .ground_truth import GroundTruth

# Computed as in lvis-api: other formulas differ in the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
AREA_RANGES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


def metric_names(groups: tuple[str, ...] = ("r", "c", "f")) -> tuple[str, ...]:
    """Return AP, AP50, AP75, APs, APm, APl, and one AP name for each frequency group."""
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP{name}" for name in groups))


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of detections with annotations, over all object sizes.

    Attributes:
        detections: (M,) int64, indices into the evaluated detections, ordered by image, category
            and descending score. Detections above the limits, of a category that is not verified in
            the image, or without area are left out.
        outcomes: (M, T) uint8 at each IoU threshold: 0 false positive, 1 true positive, 2 ignored.
        annotations: (M,) int64, index of the annotation matched at IoU 0.5, or -1.
        ious: (M,) float64, IoU with that annotation, or 0.
        matched: (G,) bool, annotations that are matched at IoU 0.5.
    """

    detections: np.ndarray
    outcomes: np.ndarray
    annotations: np.ndarray
    ious: np.ndarray
    matched: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Precision and recall of detections by category, and the metrics.

    Attributes:
        ground_truth: the ground truth.
        iou_type: "bbox", "segm" or "boundary".
        engine: the engine that was used, "fast" or "lvis".
        max_dets: evaluated detections per image. None: all.
        precision: (T, R, K, A) float64 at T = 10 IoU thresholds and R = 101 recalls, for K
            categories and A = 4 object sizes (:data:`AREAS`); -1 without ground truth.
        recall: (T, K, A) float64, maximum recall; -1 without ground truth.
        matches: the matches, if requested.
        scores: (M,) scores of the detections in ``matches``.
        match_categories: (M,) int64, their indices in ``ground_truth.category_ids``.
        match_images: (M,) int64, their indices in ``ground_truth.image_ids``.
    """

    ground_truth: GroundTruth
    iou_type: str
    engine: str
    max_dets: int | None
    precision: np.ndarray
    recall: np.ndarray
    matches: Matches | None = None
    scores: np.ndarray | None = None
    match_categories: np.ndarray | None = None
    match_images: np.ndarray | None = None
    iou_thresholds = IOU_THRESHOLDS
    recall_thresholds = RECALL_THRESHOLDS
    areas = AREAS

    def metrics(self) -> dict[str, float]:
        """Return LVIS's metrics as fractions; NaN without ground truth.

        These are AP, AP50, AP75, APs, APm, APl, one AP for each frequency group, and the average
        recalls AR@300, ARs@300, ARm@300 and ARl@300, named by ``max_dets``. With LVIS's groups they
        are the 13 metrics of lvis-api.
        """
        values = [
            _mean(self.precision[..., 0]),
            _mean(self.precision[_threshold(0.5), ..., 0]),
            _mean(self.precision[_threshold(0.75), ..., 0]),
            *(_mean(self.precision[..., area]) for area in (1, 2, 3)),
            *(_mean(self.precision[:, :, rows, 0]) for rows in self._group_rows()),
        ]
        metrics = dict(zip(metric_names(self.ground_truth.groups.names), values, strict=True))
        for area, name in enumerate(("", "s", "m", "l")):
            metrics[f"AR{name}@{self._limit}"] = _mean(self.recall[..., area])
        return metrics

    def group_recall(self) -> dict[str, float]:
        """Return the average recall of each frequency group: ARr@300, ARc@300, ARf@300."""
        names = self.ground_truth.groups.names
        return {
            f"AR{name}@{self._limit}": _mean(self.recall[:, rows, 0])
            for name, rows in zip(names, self._group_rows(), strict=True)
        }

    def category_ap(self, iou: float | None = None, area: str = "all") -> np.ndarray:
        """Return (K,) AP by category at one IoU threshold or over all; NaN without ground truth."""
        return _category_means(self.precision[..., AREAS.index(area)], iou)

    def category_recall(self, iou: float | None = None, area: str = "all") -> np.ndarray:
        """Return (K,) average recall by category; NaN without ground truth."""
        return _category_means(self.recall[:, None, :, AREAS.index(area)], iou)

    def group_precision(self, group: str | None, iou: float | None = None) -> np.ndarray:
        """Return (R,) mean precision over the categories of a group, or over all for None."""
        rows = slice(None)
        if group is not None:
            rows = self._group_rows()[self.ground_truth.groups.names.index(group)]
        precision = self.precision[:, :, rows, 0] if iou is None else self._at(iou)[:, :, rows]
        return np.array([_mean(precision[:, r]) for r in range(precision.shape[1])])

    def _at(self, iou: float) -> np.ndarray:
        return self.precision[_threshold(iou), ..., 0]

    def categories_evaluated(self) -> dict[str, int]:
        """Return the number of categories with counted annotations in each group."""
        evaluated = self.recall[0, :, 0] > -1
        return {
            name: int(evaluated[rows].sum())
            for name, rows in zip(self.ground_truth.groups.names, self._group_rows(), strict=True)
        }

    def per_category(self) -> list[dict]:
        """Return id, name, group, image_count, annotations (counted), AP, AP50, AR by category."""
        truth = self.ground_truth
        names = (*truth.groups.names, "")  # "" for -1, no group
        columns = {
            "id": truth.category_ids.tolist(),
            "name": truth.category_names,
            "group": [names[group] for group in truth.category_groups.tolist()],
            "image_count": truth.image_counts.tolist(),
            "annotations": np.bincount(
                truth.annotation_categories[truth.counted], minlength=len(truth.category_ids)
            ).tolist(),
            "AP": self.category_ap().tolist(),
            "AP50": self.category_ap(0.5).tolist(),
            "AR": self.category_recall().tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def _limit(self) -> str:
        return "all" if self.max_dets is None else str(self.max_dets)

    def _group_rows(self) -> list[np.ndarray]:
        truth = self.ground_truth
        return [np.flatnonzero(truth.category_groups == g) for g in range(len(truth.groups.names))]


def _threshold(iou: float) -> np.ndarray:
    indices = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou))
    if not len(indices):
        raise ValueError(f"iou must be one of 0.5, 0.55, ..., 0.95; got {iou}.")
    return indices


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")


def _category_means(values: np.ndarray, iou: float | None) -> np.ndarray:
    """Return the (K,) means of (T, R, K) over thresholds and recalls."""
    values = values if iou is None else values[_threshold(iou)]
    return np.where(values[0, 0] > -1, values.mean(axis=(0, 1)), np.nan)
