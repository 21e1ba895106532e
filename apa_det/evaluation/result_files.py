"""Reading any detector's result files, with one clear error for a record that cannot be used."""

import math
import os
import pickle
from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.utils.file_io import PathManager

from ..data.validation import is_box, segmentation_fault
from ..utils.json_stream import read_json_list
from .detections import Detections, Masks
from .ground_truth import GroundTruth

__all__ = ["read_results"]

_CHUNK = 100_000  # records
_ZIP = b"PK\x03\x04"  # what torch.save writes is a zip archive, or else a pickle
_PICKLE = b"\x80"


def read_results(
    path: str | os.PathLike,
    ground_truth: GroundTruth,
    iou_types: Sequence[str] | None = None,
) -> Detections:
    """
    Read a detector's results, whatever framework wrote them.

    These are read: LVIS's and COCO's result JSON, gzip of it, and the
    ``instances_predictions.pth`` of detectron2's evaluators, whose classes count from 0 in the
    order of the category ids. No code in a file is ever run.

    Args:
        path: the file.
        ground_truth: what the results belong to.
        iou_types: read what these need, of "bbox", "segm" and "boundary". None: boxes, and masks
            where both the file and the ground truth have them. Detections without boxes get those
            around their masks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken or cut off, or no list of detections, or one of them names a
            picture or category that the ground truth lacks, lacks a key, or has a score that is
            not finite, a broken box, or a mask of another picture's size. The message names the
            file and the first such record.
    """
    name = os.fspath(path)
    class_indices = _is_torch_file(name)
    chunks = _read_torch_file(name) if class_indices else read_json_list(name)
    reader = _Reader(name, ground_truth, iou_types, class_indices)
    parts = [reader.detections(records) for records in chunks if records]
    if parts:
        return Detections.concatenate(parts)
    none = np.empty(0, np.int64)
    return Detections(none, none, np.empty(0), np.empty((0, 4)), Masks.from_rles([]))


def _is_torch_file(path: str) -> bool:
    path = PathManager.get_local_path(path)
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(4)
    return start == _ZIP or start[:1] == _PICKLE


def _read_torch_file(path: str) -> Iterator[list[dict]]:
    help_ = (
        'this should be detectron2\'s instances_predictions.pth: a list of {"image_id": ..., '
        '"instances": [...]}'
    )
    try:
        pictures = torch.load(PathManager.get_local_path(path), "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than lists, dicts and numbers, and is not loaded, because that "
            f"could run code: {help_}, else write the results as JSON"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is cut off or broken; {help_}: write or copy it again") from error
    if not isinstance(pictures, list):
        raise ValueError(f"{path} holds a {type(pictures).__name__}, not a list; {help_}")
    records: list[dict] = []
    for index, picture in enumerate(pictures):
        instances = picture.get("instances") if isinstance(picture, dict) else None
        if not isinstance(instances, list):
            raise ValueError(f"{path}: entry {index} (from 0) has no list of instances; {help_}")
        records += instances
        if len(records) >= _CHUNK:
            yield records
            records = []
    yield records


class _Reader:
    """Makes columns of the records of one file, chunk by chunk."""

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
        """What all records must have is what the first one has and the IoU types need."""
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
        """None: something is wrong with a record."""
        pictures = _indices([r["image_id"] for r in records], self._truth.image_ids)
        categories = _indices([r["category_id"] for r in records], self._categories)
        scores = _numbers([r["score"] for r in records])
        if pictures is None or categories is None or scores is None:
            return None
        boxes = masks = None
        if self._box_key:
            boxes = _numbers([r["bbox"] for r in records])
            if boxes is None or boxes.shape != (len(records), 4) or (boxes[:, 2:] < 0).any():
                return None
        if self._mask_key:
            sizes = self._truth.image_sizes[pictures]
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
            image_ids=self._truth.image_ids[pictures],
            category_ids=self._truth.category_ids[categories],
            scores=scores,
            boxes=boxes,
            masks=masks,
        )

    def _raise_first_fault(self, records: list) -> None:
        sizes = self._truth.image_sizes.tolist()
        pictures = dict(zip(self._truth.image_ids.tolist(), sizes, strict=True))
        categories = set(self._categories.tolist())
        for index, record in enumerate(records, start=self._count):
            fault = self._fault(record, pictures, categories)
            if fault:
                raise ValueError(f"{self._name}: record {index} (from 0) {fault}")
        last = self._count + len(records) - 1
        raise ValueError(
            f"{self._name}: one of the records {self._count} to {last} (from 0) cannot be read as "
            "a detection"
        )

    def _fault(self, record, pictures: dict[int, list[int]], categories: set[int]) -> str | None:
        """What is wrong first with a record, and the mend."""
        if not isinstance(record, dict):
            return f"is {record!r:.40}, not an object with image_id, category_id and score"
        shape = [
            key
            for key, needed in (("bbox", self._box_key), ("segmentation", self._mask_key))
            if needed
        ]
        for key in ("image_id", "category_id", "score", *shape):
            if key not in record:
                return (
                    f"has no {key}: a detection needs image_id, category_id, score and "
                    f"{' and '.join(shape)}"
                )
        if not _is_one_of(record["image_id"], pictures):
            return (
                f"has the image_id {record['image_id']!r}, which no picture of the ground truth "
                "has: run the detector on the pictures of this very file"
            )
        if not _is_one_of(record["category_id"], categories):
            which = "the ids of the ground truth's categories, not class indices"
            if self._class_indices:
                which = f"class indices from 0 to {len(categories) - 1}"
            return (
                f"has the category_id {record['category_id']!r}, which the ground truth does not "
                f"know: use {which}"
            )
        score = record["score"]
        if type(score) not in (int, float) or not math.isfinite(score):
            return f"has the score {score!r}: it must be a finite number"
        box = record["bbox"] if self._box_key else (0, 0, 0, 0)
        if not is_box(box):
            return f"has the bbox {box!r}: it needs [x, y, width, height] in pixels"
        if box[2] < 0 or box[3] < 0:
            return (
                f"has the bbox {box!r} of negative size: it needs [x, y, width, height], not two "
                "corners"
            )
        if self._mask_key:
            segmentation = record["segmentation"]
            if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), bytes):
                segmentation = {**segmentation, "counts": segmentation["counts"].decode()}
            height, width = pictures[record["image_id"]]
            if not segmentation:
                return "has an empty segmentation: it needs RLE, or polygons"
            fault = segmentation_fault(segmentation, height, width, coco=False)
            if fault:
                return f"has a segmentation {fault}"
        return None


def _numbers(values: list) -> np.ndarray | None:
    """As float64; None: not all are finite numbers."""
    array = np.array(values)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        return None
    return array.astype(np.float64, copy=False)


def _indices(ids: list, known: np.ndarray) -> np.ndarray | None:
    """Where the ids are among the known ones, which ascend; None: not all are."""
    array = np.array(ids)
    if array.dtype.kind not in "iuf" or array.ndim != 1 or not len(known):
        return None
    places = np.minimum(np.searchsorted(known, array), len(known) - 1)
    return places if np.array_equal(known[places], array) else None


def _is_one_of(id_, known) -> bool:
    return type(id_) in (int, float) and id_ in known


def _is_compressed(segmentation) -> bool:
    return type(segmentation) is dict and type(segmentation["counts"]) in (str, bytes)


def _compressed(segmentation: dict | list, size: list[int]) -> dict:
    """As compressed RLE.

    Raises:
        ValueError: it is neither RLE of this size nor polygons.
    """
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    fault = segmentation_fault(segmentation, *size, coco=False)
    if fault:
        raise ValueError(fault)
    rles = mask_util.frPyObjects(segmentation, *size)
    return mask_util.merge(rles) if isinstance(rles, list) else rles
