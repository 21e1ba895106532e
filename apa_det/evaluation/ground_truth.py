"""Ground truth of an LVIS-format or COCO-format dataset, in columns."""

import copy
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from detectron2.utils.logger import log_first_n

from ..data import complete_categories
from ..data.coco_to_lvis import copy_counts, crowd_note, usable_annotations
from ..data.frequency import COMMON_MAX, RARE_MAX, FrequencyGroups
from ..data.records import compressed
from ..data.validation import is_coco_format, read_coco_or_lvis_json
from ..utils.progress import track
from .detections import Masks
from .mask_texts import Selected, read_truth_json

logger = logging.getLogger(__name__)


class GroundTruth:
    """Annotations and verified categories of a dataset, as LVIS evaluation needs them.

    Attributes:
        images: I image records by ascending id; not copied.
        image_ids: (I,) int64, ascending.
        image_sizes: (I, 2) int64, height and width.
        category_ids: (K,) int64, ascending.
        category_names: K names.
        image_counts: (K,) int64, the number of training images with each category.
        groups: the frequency groups.
        category_groups: (K,) int64, index of each group in ``groups.names``; -1: no group.
        annotation_ids: (G,) int64, in the order of the dataset.
        annotation_images: (G,) int64, indices into ``image_ids``.
        annotation_categories: (G,) int64, indices into ``category_ids``.
        boxes: (G, 4) float64, XYWH in pixels.
        areas: (G,) float64, the ``area`` values of the dataset.
        ignore: (G,) bool, annotations marked ``ignore``.
        has_area: (G,) bool, annotations with an area; lvis-api skips the others.
        counted: (G,) bool, annotations that have an area and are not ignored.
        segmentations: G polygons or RLEs, not copied. None: no masks. The polygons of a file in
            LVIS format are parsed on first use, which raises a UserError if one is invalid.
        num_crowds: crowd regions of a COCO-format dataset, which LVIS's rules do not have: there,
            unmatched detections of their category are ignored in the whole image.
        verified: sorted int64 keys ``image index * K + category index`` of the pairs where the
            category is verified as present or absent. None: all pairs.
        not_exhaustive: sorted int64 keys of the pairs where some instances may not be annotated.
    """

    num_crowds = 0

    def __init__(
        self,
        dataset: dict,
        groups: FrequencyGroups | None = None,
        *,
        everything_verified: bool = False,
        masks: Sequence[list | dict] | None = None,
    ):
        """
        Args:
            dataset: in LVIS format, as from :func:`apa_det.data.read_lvis_json`, with
                ``image_count`` in all categories. It is not changed or copied.
            groups: the frequency groups. None: LVIS's.
            everything_verified: all categories are verified in all images;
                ``neg_category_ids`` are not read.
            masks: the masks of the annotations. None: their ``segmentation``.
        """
        self.images = sorted(dataset["images"], key=lambda image: image["id"])
        self.image_ids = _integers(self.images, "id")
        self.image_sizes = np.array(
            [(image["height"], image["width"]) for image in self.images], np.int64
        ).reshape(-1, 2)
        categories = sorted(dataset["categories"], key=lambda category: category["id"])
        self.category_ids = _integers(categories, "id")
        self.category_names = [category.get("name", str(category["id"])) for category in categories]
        self.image_counts = _integers(categories, "image_count")
        self.groups = groups or FrequencyGroups.lvis()
        self.category_groups = self.groups.assign(categories)

        annotations = dataset["annotations"]
        self.annotation_ids = _integers(annotations, "id")
        self.annotation_images = np.searchsorted(self.image_ids, _integers(annotations, "image_id"))
        self.annotation_categories = np.searchsorted(
            self.category_ids, _integers(annotations, "category_id")
        )
        boxes = chain.from_iterable([a["bbox"] for a in annotations])
        self.boxes = np.fromiter(boxes, np.float64, 4 * len(annotations)).reshape(-1, 4)
        self.areas = np.array([a["area"] for a in annotations], np.float64)
        self.ignore = np.array([bool(a.get("ignore")) for a in annotations], bool)
        self.has_area = (self.areas > 0) & (self.areas < np.inf)
        self.counted = self.has_area & ~self.ignore & (self.areas <= 1e10)
        if masks is None:
            masks = [a.get("segmentation") for a in annotations]
            masks = masks if any(masks) else None
        self.segmentations = masks

        self.not_exhaustive = np.unique(self._pairs("not_exhaustive_category_ids"))
        self.verified = None
        if not everything_verified:
            positive = self.annotation_images * len(categories) + self.annotation_categories
            negative = self._pairs("neg_category_ids")
            self.verified = np.unique(np.concatenate([positive[self.has_area], negative]))

    @property
    def has_masks(self) -> bool:
        return self.segmentations is not None

    @cached_property
    def masks(self) -> Masks:
        """The ``segmentations`` as compressed RLE, converted on first use."""
        sizes = self.image_sizes[self.annotation_images].tolist()
        pairs = zip(self.segmentations, sizes, strict=True)
        pairs = track(pairs, "Converting masks", "masks", len(sizes))
        return Masks.from_rles([compressed(mask, *size) for mask, size in pairs])

    def crowd_note(self) -> str:
        """Return how crowd regions are evaluated, or "" without crowd regions."""
        return crowd_note(self.num_crowds) if self.num_crowds else ""

    def _pairs(self, key: str) -> np.ndarray:
        """Return the keys of the pairs that images list under ``key``; unknown ids are skipped."""
        lists = [image.get(key, ()) for image in self.images]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(chain.from_iterable(lists), np.int64, lengths.sum())
        images = np.repeat(np.arange(len(lists)), lengths)
        known = np.isin(ids, self.category_ids)
        categories = np.searchsorted(self.category_ids, ids[known])
        return images[known] * len(self.category_ids) + categories

    @classmethod
    def from_dataset(
        cls,
        dataset: dict,
        groups: FrequencyGroups | None = None,
        *,
        count_from: dict | None = None,
        masks: Sequence[list | dict] | None = None,
    ) -> "GroundTruth":
        """Build from the content of an LVIS-format or COCO-format file.

        A dataset without ``neg_category_ids`` is in COCO format. All categories are verified in its
        images, see :func:`apa_det.data.coco_to_lvis`.

        Args:
            dataset: as from :func:`apa_det.data.read_lvis_json` or ``read_coco_json``; not changed.
            groups: the frequency groups. None: LVIS's.
            count_from: the training set that defines the image counts, in COCO or LVIS format.
                None: use ``image_count`` of ``dataset``, or count its images.
            masks: the masks of the annotations in LVIS format. None: their ``segmentation``.

        Raises:
            UserError: ``count_from`` or ``groups`` have other categories.
        """
        coco = is_coco_format(dataset)
        by_count = groups is None or groups.members is None
        is_guess = count_from is None and by_count and dataset["annotations"]
        if is_guess and any(map(_is_uncounted, dataset["categories"])):
            logger.warning(
                "Some categories have neither frequency nor image_count: frequency groups are "
                "based on the evaluated images instead of the training set."
            )
        categories = [dict(category) for category in dataset["categories"]]
        dataset = {**dataset, "categories": categories}
        num_crowds = 0
        if coco:
            num_crowds = sum(bool(a.get("iscrowd")) for a in dataset["annotations"])
            dataset = _without_crowds(dataset)
        thresholds = (groups and groups.max_counts) or ()
        thresholds = thresholds if len(thresholds) == 2 else (RARE_MAX, COMMON_MAX)
        if count_from is not None:
            copy_counts(count_from, categories, *thresholds)
        complete_categories(dataset, *thresholds)
        truth = cls(dataset, groups, everything_verified=coco, masks=masks)
        truth.num_crowds = num_crowds
        if num_crowds:
            note = f"The ground truth has {truth.crowd_note()}"
            log_first_n(logging.WARNING, note, key="message")
        return truth

    @classmethod
    def from_file(
        cls,
        json_file: str | os.PathLike,
        groups: FrequencyGroups | None = None,
        *,
        count_from: str | os.PathLike | None = None,
    ) -> "GroundTruth":
        """Read files and call :meth:`from_dataset`.

        Raises:
            MissingFileError, UserError: see :func:`apa_det.data.read_lvis_json`.
        """
        counted = None if count_from is None else read_coco_or_lvis_json(count_from)
        dataset, masks = read_truth_json(json_file)
        return cls.from_dataset(dataset, groups, count_from=counted, masks=masks)

    def restricted_to(self, image_ids: np.ndarray) -> "GroundTruth":
        """Return the ground truth of some images; image counts and groups stay."""
        kept = np.isin(self.image_ids, image_ids)
        annotated = kept[self.annotation_images]
        part = copy.copy(self)
        vars(part).pop("masks", None)
        part.images = [image for image, keep in zip(self.images, kept, strict=True) if keep]
        part.image_ids, part.image_sizes = self.image_ids[kept], self.image_sizes[kept]
        new_indices = np.cumsum(kept) - 1
        part.annotation_images = new_indices[self.annotation_images[annotated]]
        for name in (
            "annotation_ids",
            "annotation_categories",
            "boxes",
            "areas",
            "ignore",
            "has_area",
            "counted",
        ):
            setattr(part, name, getattr(self, name)[annotated])
        if self.segmentations is not None:
            rows = np.flatnonzero(annotated).tolist()
            part.segmentations = Selected(self.segmentations, rows)
        for name in ("verified", "not_exhaustive"):
            pairs = getattr(self, name)
            if pairs is not None:
                images, categories = np.divmod(pairs, len(self.category_ids))
                inside = kept[images]
                images = new_indices[images[inside]]
                setattr(part, name, images * len(self.category_ids) + categories[inside])
        return part


def _is_uncounted(category: dict) -> bool:
    return not category.keys() & {"frequency", "image_count"}


def _integers(records: list[dict], key: str) -> np.ndarray:
    return np.array([record[key] for record in records], np.int64)


def _without_crowds(coco: dict) -> dict:
    """Convert like ``coco_to_lvis``, but without ``neg_category_ids`` (all other categories)."""
    annotations, dropped = usable_annotations(coco)
    uncertain = defaultdict(set)
    for annotation in dropped:
        uncertain[annotation["image_id"]].add(annotation["category_id"])
    images = [
        {**image, "not_exhaustive_category_ids": sorted(uncertain.get(image["id"], ()))}
        for image in coco["images"]
    ]
    return {**coco, "images": images, "annotations": annotations}
