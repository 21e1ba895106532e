"""COCO's box AP for thousands of classes: the numbers of pycocotools, which does the matching.

pycocotools keeps a record for each pair of image and class. Here only pairs with annotations are
matched. All other detections are false positives, whatever their box.
"""

from collections import defaultdict

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..errors import UserError
from ..utils.progress import track
from .detections import Detections
from .selection import find

_AREAS = {"AP": "all", "APs": "small", "APm": "medium", "APl": "large"}
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def coco_box_ap(
    annotations: list[dict], detections: Detections, max_dets: int = 300
) -> dict[str, float]:
    """Compute COCO's box AP.

    Args:
        annotations: those of a COCO-format file; ``area`` and ``iscrowd`` are optional.
        detections: with boxes. Detections in images without annotations are false positives.
        max_dets: evaluate this many detections per image and class, by score.

    Returns:
        AP, AP50, AP75, APs, APm and APl in percent; NaN without ground truth.

    Raises:
        UserError: a score or a box is not finite.
    """
    for name in ("scores", "boxes"):
        if not np.isfinite(getattr(detections, name)).all():
            raise UserError(f"The detections have {name} that are not finite.")
    truth = _Truth(annotations)
    ranked = _Ranked(truth, detections, max_dets)
    evaluation = _Matching(truth, ranked)
    params = evaluation.params
    ranges = [params.areaRng[params.areaRngLbl.index(label)] for label in _AREAS.values()]
    means = {name: [] for name in _METRICS}
    cuts = np.searchsorted(ranked.classes, np.arange(len(truth.class_ids) + 1)).tolist()
    for index in track(range(len(truth.class_ids)), "Evaluating box AP", "classes"):
        rows = slice(cuts[index], cuts[index + 1])
        for name, (low, high) in zip(_AREAS, ranges, strict=True):
            number = truth.count(index, low, high)
            if not number:
                continue
            outcomes = evaluation.outcomes(index, rows, (low, high))
            precision = _precision(*outcomes, number, params.recThrs)
            means[name].append(precision.mean())
            if name == "AP":
                means["AP50"].append(precision[0].mean())
                means["AP75"].append(precision[5].mean())
        evaluation.release(index)
    return {n: 100 * float(np.mean(means[n])) if means[n] else np.nan for n in _METRICS}


class _Truth:
    """Annotations by class.

    Attributes:
        class_ids: (K,) int64, ascending, the classes with annotations.
        image_ids: (I,) int64, ascending, the images with annotations.
        by_pair: the annotations of each pair of class and image, both as indices.
    """

    def __init__(self, annotations: list[dict]):
        self.class_ids, classes = np.unique(
            np.array([a["category_id"] for a in annotations], np.int64), return_inverse=True
        )
        self.image_ids, images = np.unique(
            np.array([a["image_id"] for a in annotations], np.int64), return_inverse=True
        )
        self.by_pair = defaultdict(list)
        areas = defaultdict(list)
        for annotation, *pair in zip(annotations, classes.tolist(), images.tolist(), strict=True):
            _, _, width, height = annotation["bbox"]
            crowd = annotation.get("iscrowd", 0)
            record = {"area": width * height, **annotation, "iscrowd": crowd, "ignore": crowd}
            self.by_pair[tuple(pair)].append(record)
            if not crowd:
                areas[pair[0]].append(record["area"])
        self._areas = {index: np.array(values) for index, values in areas.items()}

    def count(self, index: int, low: float, high: float) -> int:
        """Return the number of annotations of a class to find, of areas in a range."""
        areas = self._areas.get(index, np.empty(0))
        return int(np.count_nonzero((areas >= low) & (areas <= high)))


class _Ranked:
    """The detections that are evaluated, ordered by class, image and descending score.

    Attributes:
        classes, images: (M,) int64, indices of a :class:`_Truth`; -1: an image without annotations.
        boxes: (M, 4) float64.
        scores: (M,).
        areas: (M,) float64.
        by_score: (M,) int64, the rank of each detection within its class. Ties are in the order of
            the rows.
    """

    def __init__(self, truth: _Truth, detections: Detections, max_dets: int):
        classes = find(detections.category_ids, truth.class_ids)
        rows = np.flatnonzero(classes >= 0)
        keys = -detections.scores[rows], detections.image_ids[rows], classes[rows]
        rows = rows[np.lexsort(keys)]  # stable
        classes, image_ids = classes[rows], detections.image_ids[rows]
        is_first = np.ones(len(rows), bool)  # of its class and image
        is_first[1:] = (np.diff(classes) != 0) | (np.diff(image_ids) != 0)
        first = np.flatnonzero(is_first)
        rank = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
        kept = rank < max_dets
        self.classes, rows = classes[kept], rows[kept]
        self.images = find(image_ids[kept], truth.image_ids)
        self.boxes = detections.boxes[rows].astype(np.float64)
        self.scores = detections.scores[rows]
        self.areas = self.boxes[:, 2] * self.boxes[:, 3]
        self.by_score = np.lexsort((-self.scores, self.classes))


class _Matching(COCOeval):
    """pycocotools' matching, of the pairs of class and image with annotations and detections."""

    def __init__(self, truth: _Truth, ranked: _Ranked):
        super().__init__(iouType="bbox")
        self._truth, self._ranked = truth, ranked
        self._gts = truth.by_pair
        self.params.maxDets = [len(ranked.scores)]  # they are limited already
        self._rows: dict[int, list[tuple[int, slice]]] = defaultdict(list)  # by class
        pairs = ranked.classes * len(truth.image_ids) + ranked.images
        annotated = np.array([k * len(truth.image_ids) + i for k, i in truth.by_pair], np.int64)
        rows = np.flatnonzero((find(pairs, np.sort(annotated)) >= 0) & (ranked.images >= 0))
        starts = np.flatnonzero(np.diff(pairs[rows], prepend=-1))
        for part in np.split(rows, starts[1:]) if len(rows) else ():
            first, last = int(part[0]), int(part[-1])
            pair = int(ranked.classes[first]), int(ranked.images[first])
            self._rows[pair[0]].append((pair[1], slice(first, last + 1)))

    def _is_any_inside(self, pair: tuple[int, int], area: tuple[float, float]) -> bool:
        low, high = area
        return any(low <= g["area"] <= high and not g["ignore"] for g in self._gts[pair])

    def release(self, index: int) -> None:
        """Free the memory of a class."""
        for image, _ in self._rows.pop(index, ()):
            self._dts.pop((index, image), None)
            self.ious.pop((index, image), None)

    def outcomes(
        self, index: int, rows: slice, area: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Match the detections of a class.

        Args:
            index: the class.
            rows: its detections.
            area: the smallest and the largest area of objects.

        Returns:
            (T, N) bool by descending score, the true positives and the ignored detections at each
            IoU threshold.
        """
        ranked, number = self._ranked, len(self.params.iouThrs)
        outside = (ranked.areas[rows] < area[0]) | (ranked.areas[rows] > area[1])
        matched = np.zeros((number, len(outside)), bool)
        ignored = np.repeat(outside[None], number, axis=0)
        for image, part in self._rows[index]:
            pair = index, image
            inside = slice(part.start - rows.start, part.stop - rows.start)
            if outside[inside].all() and not self._is_any_inside(pair, area):
                continue  # all are ignored, matched or not
            if pair not in self._dts:
                columns = ranked.boxes[part], ranked.scores[part], ranked.areas[part]
                self._dts[pair] = [
                    {"id": i, "bbox": box, "score": score, "area": size}
                    for i, (box, score, size) in enumerate(
                        zip(*(c.tolist() for c in columns), strict=True), 1
                    )
                ]
                self.ious[pair] = self.computeIoU(*pair)
            result = self.evaluateImg(*pair, list(area), self.params.maxDets[0])
            matched[:, inside] = result["dtMatches"] > 0
            ignored[:, inside] = result["dtIgnore"]
        order = ranked.by_score[rows] - rows.start
        return (matched & ~ignored)[:, order], ignored[:, order]


def _precision(
    true: np.ndarray, ignored: np.ndarray, number: int, recalls: np.ndarray
) -> np.ndarray:
    """Return (T, R) precision at given recalls, of ``number`` objects to find."""
    precision = np.zeros((len(true), len(recalls)))
    found = np.cumsum(true, axis=1, dtype=np.float64)
    counted = np.cumsum(~ignored, axis=1, dtype=np.float64)
    for t in np.flatnonzero(true.any(axis=1)).tolist():
        at = np.flatnonzero(true[t])  # between true positives, precision falls and recall stays
        values = found[t, at] / (counted[t, at] + np.spacing(1))
        values = np.append(np.maximum.accumulate(values[::-1])[::-1], 0.0)
        precision[t] = values[np.searchsorted(found[t, at] / number, recalls, side="left")]
    return precision
