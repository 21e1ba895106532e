"""Statistics of a dataset: classes, objects per image, box sizes and overlaps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..sampling.counts import ClassCounts

TRAIN_SIDES = (800, 1333)  # pixels: shorter and largest longer side of a training image
_MAX_PAIRS = 4_000_000  # of boxes, in memory at once


@dataclass(frozen=True, eq=False)
class DatasetStatistics:
    """The contents of a dataset.

    Attributes:
        names: names of the K classes, by ascending category id.
        groups: frequency group of each class, "r", "c" or "f".
        counts: instances of each class in the N images with annotations.
        num_images: number of images, with and without annotations.
        classes: (M,) class of each box.
        rows: (M,) index of its image among the N.
        relative_sizes: (M,) square root of the share of its image that a box covers.
        train_sides: (M,) shorter side of each box in pixels, with the image resized for training to
            a shorter side of 800 pixels, or a longer one of 1,333.
        overlaps: (M,) largest IoU with another box in the image.
        same_class_overlaps: (M,) largest IoU with another box of its class.
        has_masks: whether annotations have masks.
    """

    names: list[str]
    groups: list[str]
    counts: ClassCounts
    num_images: int
    classes: np.ndarray
    rows: np.ndarray
    relative_sizes: np.ndarray
    train_sides: np.ndarray
    overlaps: np.ndarray
    same_class_overlaps: np.ndarray
    has_masks: bool

    @property
    def image_counts(self) -> np.ndarray:
        """int64, shape (K,): number of images with each class."""
        return self.counts.image_count

    @property
    def objects_per_image(self) -> np.ndarray:
        """int64, shape (N,): number of boxes in each image with annotations."""
        return np.bincount(self.rows, minlength=self.counts.num_images)

    @property
    def imbalance(self) -> float:
        """Images of the most frequent class over those of the rarest one that has any.

        It is the imbalance factor of "Class-Balanced Loss Based on Effective Number of Samples"
        (Cui et al., CVPR 2019), with images as samples; NaN without annotations.
        """
        return imbalance(self.image_counts)

    def num_below(self, limit: int) -> int:
        """Return the number of classes with fewer images than a limit."""
        return int((self.image_counts < limit).sum())

    def by_group(self, group: str) -> np.ndarray:
        """Return a mask of the K classes in a frequency group."""
        return np.array([g == group for g in self.groups], bool)


def imbalance(counts: np.ndarray) -> float:
    """Return the largest count over the smallest one that is not 0; NaN without any."""
    positive = counts[counts > 0]
    return float(positive.max() / positive.min()) if len(positive) else float("nan")


def measure(dataset: dict) -> DatasetStatistics:
    """Measure a dataset.

    Args:
        dataset: content of a valid LVIS-format file, whose categories have ``frequency``. Boxes
            are clipped to their images.
    """
    categories = sorted(dataset["categories"], key=lambda c: c["id"])
    index = {c["id"]: i for i, c in enumerate(categories)}
    annotations = dataset["annotations"]
    used = {a["image_id"] for a in annotations}
    images = [image for image in dataset["images"] if image["id"] in used]
    row_of = {image["id"]: i for i, image in enumerate(images)}
    number = len(annotations)
    rows = np.fromiter((row_of[a["image_id"]] for a in annotations), np.int64, number)
    classes = np.fromiter((index[a["category_id"]] for a in annotations), np.int64, number)
    values = chain.from_iterable(a["bbox"] for a in annotations)
    boxes = np.fromiter(values, np.float64, 4 * number).reshape(-1, 4)
    sizes = np.array([(i["width"], i["height"]) for i in images], np.float64).reshape(-1, 2)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = np.clip(corners, 0, np.tile(sizes[rows], 2))
    sides = corners[:, 2:] - corners[:, :2]
    scale = np.minimum(TRAIN_SIDES[0] / sizes.min(1), TRAIN_SIDES[1] / sizes.max(1))
    overlaps, same = largest_overlaps(corners, rows, classes)
    pairs, instances = np.unique(rows * len(categories) + classes, return_counts=True)
    pair_rows, pair_classes = np.divmod(pairs, max(len(categories), 1))
    return DatasetStatistics(
        names=[c["name"] for c in categories],
        groups=[c["frequency"] for c in categories],
        counts=ClassCounts(len(images), len(categories), pair_rows, pair_classes, instances),
        num_images=len(dataset["images"]),
        classes=classes,
        rows=rows,
        relative_sizes=np.sqrt(sides.prod(1) / sizes.prod(1)[rows]),
        train_sides=sides.min(1) * scale[rows] if number else np.zeros(0),
        overlaps=overlaps,
        same_class_overlaps=same,
        has_masks=any(a.get("segmentation") for a in annotations),
    )


def largest_overlaps(
    boxes: np.ndarray, rows: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest IoU of each box with another one in its image, of any and of its class.

    Args:
        boxes: (M, 4) corners x0, y0, x1, y1.
        rows: (M,) image of each box, integers >= 0.
        classes: (M,) integers.

    Returns:
        Two arrays of shape (M,); 0 for a box without another one.
    """
    order = np.argsort(rows, kind="stable")
    numbers = np.bincount(rows) if len(rows) else np.zeros(0, np.int64)
    starts = np.cumsum(numbers) - numbers
    largest, same = np.zeros(len(boxes)), np.zeros(len(boxes))
    for images, size in _batches(numbers):
        slots = np.arange(size)
        is_box = slots < numbers[images][:, None]
        picked = order[np.where(is_box, starts[images][:, None] + slots, 0)]
        block = max(1, _MAX_PAIRS // (len(images) * size))
        for start in range(0, size, block):
            part = slice(start, start + block)
            iou = _iou(boxes[picked[:, part, None]], boxes[picked[:, None]])
            iou *= is_box[:, None] & (slots[part, None] != slots)
            chosen = is_box[:, part]
            targets = picked[:, part][chosen]
            largest[targets] = iou.max(2)[chosen]
            iou *= classes[picked[:, part, None]] == classes[picked[:, None]]
            same[targets] = iou.max(2)[chosen]
    return largest, same


def _batches(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yield images of similar numbers of boxes, at least 2, and the largest of these numbers."""
    images = np.argsort(numbers, kind="stable")
    images = images[numbers[images] > 1]
    while len(images):
        size = int(numbers[images[-1]])
        taken = max(1, _MAX_PAIRS // size**2)
        # Images with half as many boxes would be padding for the most part
        taken = min(taken, int((numbers[images] > size // 2).sum()))
        yield images[-taken:], size
        images = images[:-taken]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes, 0 for those without area."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    union = areas[0] + areas[1] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def percentiles(values: Sequence[float] | np.ndarray, *shares: int) -> list[float]:
    """Return percentiles; NaN of no values."""
    return np.percentile(values, shares).tolist() if len(values) else [float("nan")] * len(shares)
