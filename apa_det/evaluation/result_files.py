"""Read the result files of any detector."""

import logging
import os
from collections.abc import Iterator, Sequence
from zipfile import ZipFile

import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.file_io import PathManager

from ..checkpoint.reading import read_torch_file
from ..data import records as contract
from ..data.box_hints import BoxHints
from ..data.faults import Fault, column, convert
from ..errors import UserError
from ..text import printable, shown
from ..utils.json_files import CORRUPT, gc_paused, local_path
from ..utils.json_stream import read_json_list
from .detections import Detections, Masks
from .ground_truth import GroundTruth
from .names_in_results import TruthNames, are_by_name, category_indices, image_indices
from .selection import find

logger = logging.getLogger(__name__)

_CHUNK = 100_000  # records
_HIGH_SCORE = 0.05  # as the lowest one of a file of the demo
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_EXPECTED = (
    'detectron2\'s instances_predictions.pth, a list of {"image_id": ..., "instances": [...]}'
)


def read_results(
    path: str | os.PathLike,
    ground_truth: GroundTruth,
    iou_types: Sequence[str] | None = None,
) -> Detections:
    """
    Read a detector's results.

    Supported are LVIS's and COCO's result JSON, also in a gzip or zip archive, and the
    ``instances_predictions.pth`` of detectron2's evaluators, in which ``category_id`` is the index
    of the category in ascending order of ids. In the ``detections.json`` of the demo, whose records
    have ``file_name`` and ``category_name``, images and categories go by these names. No code in a
    file is ever run.

    Args:
        path: the file.
        ground_truth: the ground truth of the detections.
        iou_types: read the boxes or masks that these of "bbox", "segm" and "boundary" need. None:
            boxes, and masks if the file and the ground truth have them; a test set without
            annotations may have masks. Detections without boxes get the bounding boxes of their
            masks.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is damaged or is not a list of detections; or a detection lacks a key
            that others have, has an unknown image or category, a score that is not finite, or an
            invalid box or mask (see :mod:`apa_det.data.records`). The message names the file and
            the first such record.
    """
    return _read(_Reader(os.fspath(path), ground_truth, iou_types))


def read_results_in(
    image_ids: np.ndarray | None,
    path: str | os.PathLike,
    ground_truth: GroundTruth,
    iou_types: Sequence[str] | None = None,
) -> tuple[Detections, int]:
    """
    Read a detector's results on some images, and count its detections on other images.

    Args:
        image_ids: (N,) int64, images of the ground truth. If they are all of them, detections may
            be on images that the ground truth does not have. None: all images.
        path, ground_truth, iou_types: see :func:`read_results`.

    Returns:
        The detections on the images, and the number of the others.

    Raises:
        MissingFileError, UserError: see :func:`read_results`; or no detection is on the images.
    """
    hint = ""
    if image_ids is None:
        hint = "; if the ground truth has only some images of the dataset, list them by --image-ids"
    reader = _Reader(os.fspath(path), ground_truth, iou_types, image_ids, hint)
    detections = _read(reader)
    if image_ids is not None and reader.count and not len(detections):
        raise UserError(
            f"{path} has {reader.count:,} detections, but none on the {len(image_ids):,} images to "
            "evaluate. Give the results of a detector on the dataset of these images."
        )
    return detections, reader.count - len(detections)


@gc_paused()
def _read(reader: "_Reader") -> Detections:
    name = reader.name
    chunks = _read_torch_file(name) if reader.class_indices else read_json_list(name)
    parts = [reader.detections(records) for records in chunks if records]
    reader.log_names()
    hint = reader.hints.hint()
    if hint:
        logger.warning("%s: %s", name, hint)
    if parts:
        return Detections.concatenate(parts)
    ids = np.empty(0, np.int64)
    return Detections(ids, ids, np.empty(0), np.empty((0, 4)), Masks.from_rles([]))


def _is_torch_file(path: str) -> bool:
    local = local_path(path)
    try:
        with open(local, "rb") as file:
            start = file.read(len(_TORCH_PICKLE))
        if start.startswith(_ZIP):
            with ZipFile(local) as archive:
                return any(f"/{n}".endswith("/data.pkl") for n in archive.namelist())
    except (*CORRUPT, ValueError):  # of an invalid directory
        return path.endswith(".pth")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if start.startswith(_PICKLE) and start != _TORCH_PICKLE:
        raise UserError(
            f"{path} is a Python pickle. Pickles can run any code, so it is not loaded. Give the "
            "detector's results as JSON, a list of {...} as in COCO and LVIS result files "
            f"(MMDetection writes them with outfile_prefix), or {_EXPECTED}."
        )
    return start == _TORCH_PICKLE


def _read_torch_file(path: str) -> Iterator[list[dict]]:
    expected = f"expected {_EXPECTED}."
    images, other = read_torch_file(PathManager.get_local_path(path), "result file")
    if other:
        raise UserError(
            f"{path} contains objects of {printable(', '.join(sorted(other)), 200)}; {expected} "
            "Write the results "
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
    """Converts the records of one file to columns, chunk by chunk.

    Attributes:
        name: the file.
        class_indices: ``category_id`` is an index, not an id.
        count: number of records so far.
        hints: statistics of the boxes.
    """

    def __init__(
        self,
        name: str,
        truth: GroundTruth,
        iou_types: Sequence[str] | None,
        image_ids: np.ndarray | None = None,
        hint: str = "",
    ):
        self.name = name
        self.class_indices = _is_torch_file(name)
        self.count = 0
        self._truth = truth
        self._iou_types = iou_types
        kept = np.full(len(truth.image_ids), True)
        if image_ids is not None:
            kept = np.isin(truth.image_ids, image_ids)
        self._keep = np.append(kept, False)  # the last is for images that are not in the dataset
        self._only_known = image_ids is None or not kept.all()
        self._hint = hint
        self._names: TruthNames | None = None  # if the records go by name
        self._seen_images: set[int] = set()
        self._lowest_score = np.inf
        self._images = "be an image id of the ground truth"
        if self.class_indices:
            self._categories = np.arange(len(truth.category_ids))
            self._classes = f"be a class index from 0 to {len(self._categories) - 1}"
        else:
            self._categories = truth.category_ids
            self._classes = "be a category id of the ground truth, not a class index"
        self.hints = BoxHints()

    def detections(self, records: list) -> Detections:
        if not self.count:
            self._choose_columns(records[0])
        name = f"{self.name}: record"
        detections = convert(records, self._columns, name, self.count)
        self._check_unused(records)
        self.count += len(records)
        return detections

    def _choose_columns(self, record) -> None:
        """Choose the keys that all records need, from the first record and the IoU types."""
        keys = record.keys() if isinstance(record, dict) else {}
        if are_by_name(record):
            self._names = TruthNames(self._truth)
        can_have_masks = self._truth.has_masks or not len(self._truth.annotation_ids)
        if self._iou_types is None:
            self._masks = "segmentation" in keys and can_have_masks
            boxes = True
        else:
            self._masks = any(iou_type != "bbox" for iou_type in self._iou_types)
            boxes = "bbox" in self._iou_types
        self._box_key = boxes and ("bbox" in keys or "segmentation" not in keys)
        self._boxes_of_masks = boxes and not self._box_key
        self._mask_key = self._masks or self._boxes_of_masks
        # Keys that the first record lacks, though they would be read.
        self._unused = ["bbox"] if self._boxes_of_masks else []
        if self._iou_types is None and can_have_masks and not self._masks:
            self._unused.append("segmentation")
        geometry = ["bbox"] * self._box_key + ["segmentation"] * self._mask_key
        self._needs = f"a detection needs image_id, category_id, score and {' and '.join(geometry)}"

    def _check_unused(self, records: list[dict]) -> None:
        for key in self._unused:
            index = next((i for i, record in enumerate(records) if key in record), None)
            if index is not None:
                raise UserError(
                    f"{self.name}: record 0 (from 0): {key} is missing, but record "
                    f"{self.count + index} has one; write it for all detections or for none."
                )

    def _columns(self, records: list) -> Detections:
        if set(map(type, records)) != {dict}:
            what = "be an object with image_id, category_id and score"
            raise Fault("it", f"must {what}, got {shown(records[0])}")
        images, categories = self._indices(records)
        scores = contract.numbers(
            column(records, "score", self._needs), "score", "be a finite number"
        )
        self._lowest_score = min(self._lowest_score, float(scores.min()))
        kept = self._keep[images]
        if not kept.all():
            rows = np.flatnonzero(kept)
            records = [records[row] for row in rows.tolist()]
            images, categories, scores = images[rows], categories[rows], scores[rows]
        sizes = self._truth.image_sizes[images]
        boxes = masks = None
        if self._box_key:
            boxes = contract.boxes(column(records, "bbox", self._needs))
            if (boxes[:, 2:] < 0).any():
                raise Fault(
                    "bbox",
                    f"must have a width and height >= 0, got {shown(records[0]['bbox'])}; convert "
                    "corners to [x, y, width, height]",
                )
            self.hints.add(boxes, sizes)
        if self._mask_key:
            values = column(records, "segmentation", self._needs)
            masks = Masks(sizes.astype(np.int32), *contract.compressed_counts(values, sizes))
            if self._boxes_of_masks:
                boxes = mask_util.toBbox(masks.rles())
            if not self._masks:
                masks = None
        return Detections(
            image_ids=self._truth.image_ids[images],
            category_ids=self._truth.category_ids[categories],
            scores=scores,
            boxes=boxes,
            masks=masks,
        )

    def _indices(self, records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the image and the category of each record.

        The index of an image is -1 if it is not in the ground truth and need not be.
        """
        if self._names is not None:
            images = image_indices(self._names, records)
            self._seen_images.update(images.tolist())
            return images, category_indices(self._names, records)
        values = column(records, "image_id", self._needs)
        images = find(
            contract.integers(values, "image_id", self._images, whole_floats=True),
            self._truth.image_ids,
        )
        if self._only_known and (images < 0).any():
            raise Fault("image_id", f"must {self._images}, got {shown(values[0])}{self._hint}")
        values = column(records, "category_id", self._needs)
        categories = find(
            contract.integers(values, "category_id", self._classes, whole_floats=True),
            self._categories,
        )
        if (categories < 0).any():
            raise Fault("category_id", f"must {self._classes}, got {shown(values[0])}")
        return images, categories

    def log_names(self) -> None:
        """Log how records that go by name cover the ground truth."""
        if self._names is None:
            return
        logger.info(
            "%s: its images and categories go by file_name and category_name. It has detections in "
            "%d of %d images of the ground truth; objects in the others count as missed.",
            *(self.name, len(self._seen_images), len(self._truth.image_ids)),
        )
        if self._lowest_score > _HIGH_SCORE:
            logger.warning(
                "%s: AP needs detections of low scores too, but its lowest score is %.2g: run the "
                "demo with --confidence-threshold 0.",
                *(self.name, self._lowest_score),
            )
