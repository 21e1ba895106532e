"""Read the result files of any detector."""

import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.file_io import PathManager

from ..checkpoint.reading import read_torch_file
from ..data.validation import is_box, segmentation_fault
from ..errors import UserError
from ..utils.json_stream import read_json_list
from .detections import Detections, Masks
from .ground_truth import GroundTruth

_CHUNK = 100_000  # records
_ZIP = b"PK\x03\x04"  # torch.save writes a zip archive, or a pickle
_PICKLE = b"\x80"


def read_results(
    path: str | os.PathLike,
    ground_truth: GroundTruth,
    iou_types: Sequence[str] | None = None,
) -> Detections:
    """
    Read a detector's results.

    Supported are LVIS's and COCO's result JSON, also gzipped, and the
    ``instances_predictions.pth`` of detectron2's evaluators, in which ``category_id`` is the index
    of the category in ascending order of ids. No code in a file is ever run.

    Args:
        path: the file.
        ground_truth: the ground truth of the detections.
        iou_types: read the boxes or masks that these of "bbox", "segm" and "boundary" need. None:
            boxes, and masks if the file and the ground truth have them. Detections without boxes
            get the bounding boxes of their masks.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is damaged or is not a list of detections; or a detection lacks a key,
            has an unknown image or category, a score that is not finite, an invalid box, or a mask
            whose size is not that of its image. The message names the file and the first such
            record.
    """
    name = os.fspath(path)
    class_indices = _is_torch_file(name)
    chunks = _read_torch_file(name) if class_indices else read_json_list(name)
    reader = _Reader(name, ground_truth, iou_types, class_indices)
    parts = [reader.detections(records) for records in chunks if records]
    if parts:
        return Detections.concatenate(parts)
    ids = np.empty(0, np.int64)
    return Detections(ids, ids, np.empty(0), np.empty((0, 4)), Masks.from_rles([]))


def _is_torch_file(path: str) -> bool:
    path = PathManager.get_local_path(path)
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(4)
    return start == _ZIP or start[:1] == _PICKLE


def _read_torch_file(path: str) -> Iterator[list[dict]]:
    expected = (
        'expected detectron2\'s instances_predictions.pth, a list of {"image_id": ..., '
        '"instances": [...]}.'
    )
    images, other = read_torch_file(PathManager.get_local_path(path), "result file")
    if other:
        raise UserError(
            f"{path} contains objects of {', '.join(sorted(other))}; {expected} Write the results "
            "as JSON."
        )
    if not isinstance(images, list):
        raise UserError(f"{path} contains a {type(images).__name__}; {expected}")
    records: list[dict] = []
    for index, image in enumerate(images):
        instances = image.get("instances") if isinstance(image, dict) else None
        if not isinstance(instances, list):
            raise UserError(f"{path}: entry {index} (from 0) has no list of instances; {expected}")
        records += instances
        if len(records) >= _CHUNK:
            yield records
            records = []
    yield records


class _Reader:
    """Converts the records of one file to columns, chunk by chunk."""

    def __init__(
        self,
        name: str,
        truth: GroundTruth,
        iou_types: Sequence[str] | None,
        class_indices: bool,
    ):
        self._name = name
        self._truth = truth
        self._iou_types = iou_types
        self._class_indices = class_indices
        self._count = 0
        if class_indices:
            self._categories = np.arange(len(truth.category_ids))
        else:
            self._categories = truth.category_ids

    def detections(self, records: list[dict]) -> Detections:
        if not self._count:
            self._choose_columns(records[0])
        try:
            columns = self._columns(records)
        except (KeyError, TypeError, ValueError, OverflowError):
            columns = None
        if columns is None:
            self._raise_first_fault(records)
        self._count += len(records)
        return columns

    def _choose_columns(self, record: dict) -> None:
        """Choose the keys that all records need, from the first record and the IoU types."""
        keys = record.keys() if isinstance(record, dict) else {}
        if self._iou_types is None:
            self._masks = "segmentation" in keys and self._truth.segmentations is not None
            boxes = True
        else:
            self._masks = any(iou_type != "bbox" for iou_type in self._iou_types)
            boxes = "bbox" in self._iou_types
        self._box_key = boxes and ("bbox" in keys or "segmentation" not in keys)
        self._boxes_of_masks = boxes and not self._box_key
        self._mask_key = self._masks or self._boxes_of_masks

    def _columns(self, records: list[dict]) -> Detections | None:
        """Return None if a record is invalid."""
        images = _indices([r["image_id"] for r in records], self._truth.image_ids)
        categories = _indices([r["category_id"] for r in records], self._categories)
        scores = _numbers([r["score"] for r in records])
        if images is None or categories is None or scores is None:
            return None
        boxes = masks = None
        if self._box_key:
            boxes = _numbers([r["bbox"] for r in records])
            if boxes is None or boxes.shape != (len(records), 4) or (boxes[:, 2:] < 0).any():
                return None
        if self._mask_key:
            sizes = self._truth.image_sizes[images]
            rles = [r["segmentation"] for r in records]
            if not all(map(_is_compressed, rles)):
                rles = list(map(_compressed, rles, sizes.tolist()))
            masks = Masks.from_rles(rles)
            if not np.array_equal(masks.sizes, sizes):
                return None
            if self._boxes_of_masks:
                boxes = mask_util.toBbox(rles)
            if not self._masks:
                masks = None
        return Detections(
            image_ids=self._truth.image_ids[images],
            category_ids=self._truth.category_ids[categories],
            scores=scores,
            boxes=boxes,
            masks=masks,
        )

    def _raise_first_fault(self, records: list) -> None:
        sizes = self._truth.image_sizes.tolist()
        images = dict(zip(self._truth.image_ids.tolist(), sizes, strict=True))
        categories = set(self._categories.tolist())
        for index, record in enumerate(records, start=self._count):
            fault = self._fault(record, images, categories)
            if fault:
                raise UserError(f"{self._name}: record {index} (from 0) {fault}.")
        last = self._count + len(records) - 1
        raise UserError(
            f"{self._name}: a record among {self._count} to {last} (from 0) is not a detection."
        )

    def _fault(self, record, images: dict[int, list[int]], categories: set[int]) -> str | None:
        """Return the first fault of a record and how to fix it."""
        if not isinstance(record, dict):
            return f"is {record!r:.40}, not an object with image_id, category_id and score"
        geometry = [
            key
            for key, needed in (("bbox", self._box_key), ("segmentation", self._mask_key))
            if needed
        ]
        for key in ("image_id", "category_id", "score", *geometry):
            if key not in record:
                return (
                    f"has no {key}; a detection needs image_id, category_id, score and "
                    f"{' and '.join(geometry)}"
                )
        if not _is_one_of(record["image_id"], images):
            return (
                f"has image_id {record['image_id']!r}, which is not in the ground truth. Run the "
                "detector on the images of the ground truth"
            )
        if not _is_one_of(record["category_id"], categories):
            expected = "a category id of the ground truth, not a class index"
            if self._class_indices:
                expected = f"a class index from 0 to {len(categories) - 1}"
            return f"has category_id {record['category_id']!r}; expected {expected}"
        score = record["score"]
        if type(score) not in (int, float) or not math.isfinite(score):
            return f"has score {score!r}; expected a finite number"
        box = record["bbox"] if self._box_key else (0, 0, 0, 0)
        if not is_box(box):
            return f"has bbox {box!r}; expected [x, y, width, height] in pixels"
        if box[2] < 0 or box[3] < 0:
            return (
                f"has bbox {box!r} with a negative size; expected [x, y, width, height], not two "
                "corners"
            )
        if self._mask_key:
            segmentation = record["segmentation"]
            if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), bytes):
                segmentation = {**segmentation, "counts": segmentation["counts"].decode()}
            height, width = images[record["image_id"]]
            if not segmentation:
                return "has an empty segmentation; expected RLE or polygons"
            fault = segmentation_fault(segmentation, height, width, coco=False)
            if fault:
                return f"has a segmentation {fault}"
        return None


def _numbers(values: list) -> np.ndarray | None:
    """Return float64 values, or None if not all are finite numbers."""
    array = np.array(values)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        return None
    return array.astype(np.float64, copy=False)


def _indices(ids: list, known: np.ndarray) -> np.ndarray | None:
    """Return the index of each id in ``known`` (ascending), or None if one is missing."""
    array = np.array(ids)
    if array.dtype.kind not in "iuf" or array.ndim != 1 or not len(known):
        return None
    indices = np.minimum(np.searchsorted(known, array), len(known) - 1)
    return indices if np.array_equal(known[indices], array) else None


def _is_one_of(id_, known) -> bool:
    return type(id_) in (int, float) and id_ in known


def _is_compressed(segmentation) -> bool:
    return type(segmentation) is dict and type(segmentation["counts"]) in (str, bytes)


def _compressed(segmentation: dict | list, size: list[int]) -> dict:
    """Convert RLE or polygons to compressed RLE; raise a ValueError if they are invalid."""
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    fault = segmentation_fault(segmentation, *size, coco=False)
    if fault:
        raise ValueError(fault)
    rles = mask_util.frPyObjects(segmentation, *size)
    return mask_util.merge(rles) if isinstance(rles, list) else rles
