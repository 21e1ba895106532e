"""The result of an evaluation: precision and recall by category, and the metrics made of them."""

from dataclasses import dataclass

import numpy as np

from .ground_truth import GroundTruth

__all__ = [
    "AREAS",
    "AREA_RANGES",
    "FALSE_POSITIVE",
    "IGNORED",
    "IOU_THRESHOLDS",
    "RECALL_THRESHOLDS",
    "TRUE_POSITIVE",
    "Evaluation",
    "Matches",
    "metric_names",
]

# As lvis-api makes them: other ways differ in the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
AREA_RANGES = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


def metric_names(groups: tuple[str, ...] = ("r", "c", "f")) -> tuple[str, ...]:
    """The names of the APs: AP, AP50, AP75, APs, APm, APl, and one for each frequency group."""
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP{name}" for name in groups))


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detection found what, objects of every size taken together.

    Attributes:
        detections: (M,) int64, places in the detections that were evaluated. Those are left out
            that play no part: above the limits, of a category that nobody searched the picture for,
            or without area. Ordered by picture, category, and falling score.
        outcomes: (M, T) uint8 for each IoU threshold: 0 false positive, 1 true positive, 2 ignored.
        annotations: (M,) int64, places in the ground truth's annotations, of what the detection
            matches at IoU 0.5; -1: nothing.
        ious: (M,) float64, the IoU with it; 0: nothing.
        found: (G,) bool, annotations that a detection matches at IoU 0.5.
    """

    detections: np.ndarray
    outcomes: np.ndarray
    annotations: np.ndarray
    ious: np.ndarray
    found: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Precision and recall of detections, by category, with the metrics that follow from them.

    Attributes:
        ground_truth: what the detections were held against.
        iou_type: "bbox", "segm" or "boundary".
        engine: "fast" or "lvis": what computed this.
        max_dets: how many detections counted for each picture; None: all.
        precision: (T, R, K, A) float64 at T = 10 IoU thresholds, R = 101 recalls, for each
            category and each of :data:`AREAS`; -1 without ground truth.
        recall: (T, K, A) float64, the recall of all detections; -1 without ground truth.
        matches: which detection found what, where it was asked for.
        scores: (M,) the scores of the detections in ``matches``.
        match_categories: (M,) int64, places of their categories in ``ground_truth.category_ids``.
        match_images: (M,) int64, places of their pictures in ``ground_truth.image_ids``.
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
        """The metrics of LVIS as fractions; NaN: the ground truth has nothing in that group.

        AP, AP50, AP75, APs, APm, APl, an AP for each frequency group, and the average recalls
        AR@300, ARs@300, ARm@300 and ARl@300, named after ``max_dets``: the 13 metrics of lvis-api,
        where the groups are LVIS's.
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
        """The average recall of each frequency group: ARr@300, ARc@300 and ARf@300."""
        names = self.ground_truth.groups.names
        return {
            f"AR{name}@{self._limit}": _mean(self.recall[:, rows, 0])
            for name, rows in zip(names, self._group_rows(), strict=True)
        }

    def category_ap(self, iou: float | None = None, area: str = "all") -> np.ndarray:
        """(K,) AP of each category at one IoU threshold or over all; NaN: no ground truth."""
        return _category_means(self.precision[..., AREAS.index(area)], iou)

    def category_recall(self, iou: float | None = None, area: str = "all") -> np.ndarray:
        """(K,) average recall of each category; NaN: no ground truth."""
        return _category_means(self.recall[:, None, :, AREAS.index(area)], iou)

    def group_precision(self, group: str | None, iou: float | None = None) -> np.ndarray:
        """(R,) mean precision at each recall over the categories of a group; None: over all."""
        rows = slice(None)
        if group is not None:
            rows = self._group_rows()[self.ground_truth.groups.names.index(group)]
        precision = self.precision[:, :, rows, 0] if iou is None else self._at(iou)[:, :, rows]
        return np.array([_mean(precision[:, r]) for r in range(precision.shape[1])])

    def _at(self, iou: float) -> np.ndarray:
        return self.precision[_threshold(iou), ..., 0]

    def categories_evaluated(self) -> dict[str, int]:
        """How many categories of each group have ground truth that counts."""
        evaluated = self.recall[0, :, 0] > -1
        return {
            name: int(evaluated[rows].sum())
            for name, rows in zip(self.ground_truth.groups.names, self._group_rows(), strict=True)
        }

    def per_category(self) -> list[dict]:
        """For each category id, name, group, image_count, annotations that count, AP, AP50, AR."""
        truth = self.ground_truth
        names = (*truth.groups.names, "")  # the last for -1, no group
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
    places = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou))
    if not len(places):
        raise ValueError(f"The IoU thresholds are 0.5, 0.55, ..., 0.95, not {iou}.")
    return places


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")


def _category_means(values: np.ndarray, iou: float | None) -> np.ndarray:
    """Over thresholds and recalls of (T, R, K)."""
    values = values if iou is None else values[_threshold(iou)]
    return np.where(values[0, 0] > -1, values.mean(axis=(0, 1)), np.nan)
