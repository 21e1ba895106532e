"""The instances of a training set that can be pasted, drawn by class."""

import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from ...errors import UserError
from ...utils.progress import track

logger = logging.getLogger(__name__)

KEY = "INPUT.COPY_PASTE (dataloader.train.copy_paste in a LazyConfig)"
_REFUSED = {
    "proposal_boxes": "precomputed proposals, which lie around no pasted instance",
    "sem_seg_file_name": "semantic labels, which pasted instances would contradict",
}


class Draw(NamedTuple):
    """An instance of the bank.

    Attributes:
        category: its contiguous id.
        image: index of its image in the training set.
        annotation: its index among the annotations of the image.
    """

    category: int
    image: int
    annotation: int


class InstanceBank:
    """All instances that can be pasted: not crowds, and no class of ``not_exhaustive_category_ids``
    in its image, whose instances may be a part of a group.

    Attributes:
        classes: int64, shape (C,), ascending contiguous ids of the classes with instances.
        probabilities: float64, shape (C,), of drawing each of them.
        starts: int64, shape (C + 1,), where the instances of each class start.
        images, annotations: int32, shape (M,), see :class:`Draw`; by class.
        pixels: float64, shape (C,), in all boxes of each class.
    """

    def __init__(
        self,
        dataset: Iterable[dict],
        *,
        sampling: str,
        repeat_thresh: float = 0.0,
        file_ids: Sequence[int] | None = None,
    ):
        """
        Args:
            dataset: detectron2 dataset dicts.
            sampling: see :class:`CopyPaste`.
            repeat_thresh: t of the repeat factor max(1, √(t / f)) of a class in a fraction f of the
                images.
            file_ids: category id in ``not_exhaustive_category_ids`` of each contiguous id.

        Raises:
            UserError: there is nothing to paste, or pasting is not possible.
        """
        rows, image_counts, number = array("d"), Counter(), 0
        tracked = track(dataset, "Copy-paste: collecting the instances", "images")
        for number, record in enumerate(tracked, 1):
            _require_plain(record)
            excluded = record.get("not_exhaustive_category_ids") or ()
            labels = set()
            for i, annotation in enumerate(record.get("annotations", ())):
                if annotation.get("iscrowd"):
                    continue
                label = annotation["category_id"]
                labels.add(label)
                area = _area(annotation, record)
                if area and not (excluded and file_ids[label] in excluded):
                    rows.extend((label, number - 1, i, area))
            image_counts.update(labels)
        if not rows:
            raise UserError(f"{KEY} needs instances to paste, but the training set has none.")
        table = np.array(rows).reshape(-1, 4)
        table = table[np.argsort(table[:, 0], kind="stable")]
        labels, self.images, self.annotations = (column.astype(np.int32) for column in table.T[:3])
        self.classes, starts = np.unique(labels.astype(np.int64), return_index=True)
        self.pixels = np.add.reduceat(table[:, 3], starts)
        self.starts = np.append(starts, len(labels))
        fractions = np.array([image_counts[label] for label in self.classes.tolist()]) / number
        weights = _weights(sampling, fractions, repeat_thresh)
        self.probabilities = weights / weights.sum()
        self._cumulative = self.probabilities.cumsum()
        logger.info(
            "Copy-paste: %d instances of %d classes can be pasted; %d classes with annotations "
            "have none of them.",
            *(len(labels), len(self.classes), len(image_counts) - len(self.classes)),
        )

    def draw(self) -> Draw:
        """Draw a class, then one of its instances, with NumPy's global random numbers."""
        c = np.searchsorted(self._cumulative, np.random.rand(), side="right")
        c = min(int(c), len(self.classes) - 1)  # the sum of the probabilities may be below 1
        i = np.random.randint(self.starts[c], self.starts[c + 1])
        return Draw(int(self.classes[c]), int(self.images[i]), int(self.annotations[i]))

    def most_drawn(self, num_pixels: float) -> tuple[np.ndarray, float]:
        """Choose the classes whose instances are drawn most often, to keep their crops in memory.

        Args:
            num_pixels: that all boxes of the chosen classes may have together.

        Returns:
            bool, shape (C,), the chosen classes, and their share of what is drawn.
        """
        order = np.argsort(-self.probabilities / self.pixels, kind="stable")
        chosen = np.zeros(len(self.classes), bool)
        chosen[order] = self.pixels[order].cumsum() <= num_pixels
        return chosen, float(self.probabilities[chosen].sum())


def _weights(sampling: str, fractions: np.ndarray, repeat_thresh: float) -> np.ndarray:
    if sampling == "uniform":
        return np.ones(len(fractions))
    if sampling == "rare_first":
        return 1 / fractions
    if not repeat_thresh > 0:
        raise UserError(
            "INPUT.COPY_PASTE.SAMPLING repeat_factor needs DATALOADER.REPEAT_THRESHOLD "
            f"(dataloader.train.repeat_thresh in a LazyConfig) > 0, got {repeat_thresh}. Set it "
            "e.g. to 0.001, as for LVIS."
        )
    return np.maximum(1, np.sqrt(repeat_thresh / fractions))


def _require_plain(record: dict) -> None:
    for key, what in _REFUSED.items():
        if key in record:
            raise UserError(f"{KEY} does not work with {what}: turn it off.")


def _area(annotation: dict, record: dict) -> float:
    """Return the pixels of the box in its image; 0 for an annotation that cannot be pasted."""
    if annotation["bbox_mode"] == BoxMode.XYWHA_ABS:
        raise UserError(f"{KEY} does not work with rotated boxes: turn it off.")
    x0, y0, x1, y1 = corners(annotation)
    width = min(x1, record["width"]) - max(x0, 0)
    height = min(y1, record["height"]) - max(y0, 0)
    empty = "segmentation" in annotation and not annotation["segmentation"]
    return 0.0 if empty or min(width, height) < 1 else float(width * height)


def corners(annotation: dict) -> list[float]:
    """Return the box of an annotation as [x0, y0, x1, y1]; much faster than ``BoxMode.convert``."""
    x, y, a, b = box = [*map(float, annotation["bbox"])]
    mode = annotation["bbox_mode"]
    if mode == BoxMode.XYWH_ABS:
        return [x, y, x + a, y + b]
    return box if mode == BoxMode.XYXY_ABS else BoxMode.convert(box, mode, BoxMode.XYXY_ABS)
