"""Ground truth in columns, of an LVIS-format or a COCO-format dataset."""

import copy
import logging
import os
from collections import defaultdict
from itertools import chain

import numpy as np

from ..data import complete_categories
from ..data.coco_to_lvis import copy_counts, usable_annotations
from ..data.frequency import COMMON_MAX, RARE_MAX, FrequencyGroups
from ..data.validation import is_coco_format, read_coco_or_lvis_json

__all__ = ["GroundTruth"]

logger = logging.getLogger(__name__)


class GroundTruth:
    """What a dataset says, and what it leaves open, as the LVIS metric needs it.

    Attributes:
        images: I image records, by ascending id; the dataset's own objects.
        image_ids: (I,) int64, ascending.
        image_sizes: (I, 2) int64, height and width.
        category_ids: (K,) int64, ascending.
        category_names: K names.
        image_counts: (K,) int64, the training pictures that hold each category.
        groups: the frequency groups.
        category_groups: (K,) int64, each category's place in ``groups.names``; -1: no group.
        annotation_ids: (G,) int64, the dataset's own, in its order.
        annotation_images: (G,) int64, places in ``image_ids``.
        annotation_categories: (G,) int64, places in ``category_ids``.
        boxes: (G, 4) float64, XYWH in pixels.
        areas: (G,) float64, as the dataset says.
        ignore: (G,) bool, annotations marked ``ignore``.
        has_area: (G,) bool; lvis-api leaves out what has none.
        counted: (G,) bool, annotations that have an area and are not ignored: what there is to
            find.
        segmentations: G polygons or RLEs, the dataset's own objects. None: there are no masks.
        verified: sorted int64 keys ``image place * K + category place`` of the pairs where the
            category is known to be there or not. None: all pairs are.
        not_exhaustive: the same, of the pairs where some instances may lack annotations.
    """

    def __init__(
        self,
        dataset: dict,
        groups: FrequencyGroups | None = None,
        *,
        everything_verified: bool = False,
    ):
        """
        Args:
            dataset: in LVIS format, as :func:`apa_det.data.read_lvis_json` gives it, every category
                with an ``image_count``. It is kept, and not changed.
            groups: the frequency groups. None: LVIS's.
            everything_verified: every picture is searched for every category, so
                ``neg_category_ids`` are not needed.
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
        self.boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
        self.areas = np.array([a["area"] for a in annotations], np.float64)
        self.ignore = np.array([bool(a.get("ignore")) for a in annotations], bool)
        self.has_area = (self.areas > 0) & (self.areas < np.inf)
        self.counted = self.has_area & ~self.ignore & (self.areas <= 1e10)
        segmentations = [a.get("segmentation") for a in annotations]
        self.segmentations = segmentations if any(segmentations) else None

        self.not_exhaustive = np.unique(self._pairs("not_exhaustive_category_ids"))
        self.verified = None
        if not everything_verified:
            positive = self.annotation_images * len(categories) + self.annotation_categories
            negative = self._pairs("neg_category_ids")
            self.verified = np.unique(np.concatenate([positive[self.has_area], negative]))

    @property
    def has_masks(self) -> bool:
        return self.segmentations is not None

    def _pairs(self, key: str) -> np.ndarray:
        """The keys of the pairs that the pictures list; of categories that exist."""
        lists = [image.get(key, ()) for image in self.images]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(chain.from_iterable(lists), np.int64, lengths.sum())
        images = np.repeat(np.arange(len(lists)), lengths)
        known = np.isin(ids, self.category_ids)
        places = np.searchsorted(self.category_ids, ids[known])
        return images[known] * len(self.category_ids) + places

    @classmethod
    def from_dataset(
        cls,
        dataset: dict,
        groups: FrequencyGroups | None = None,
        *,
        count_from: dict | None = None,
    ) -> "GroundTruth":
        """From the content of an LVIS-format or COCO-format file.

        A file whose pictures have no ``neg_category_ids`` is COCO's. Its pictures count as searched
        for every category, as :func:`apa_det.data.coco_to_lvis` explains.

        Args:
            dataset: as :func:`apa_det.data.read_lvis_json` or ``read_coco_json`` gives it; it is
                not changed.
            groups: the frequency groups. None: LVIS's.
            count_from: the training set to take image counts from, in COCO or LVIS format. None:
                they are the file's own, and where it has none they are counted in it.

        Raises:
            ValueError: ``count_from`` or ``groups`` are of other categories.
        """
        coco = is_coco_format(dataset)
        by_count = groups is None or groups.members is None
        if count_from is None and by_count and any(map(_is_uncounted, dataset["categories"])):
            logger.warning(
                "Some categories have neither frequency nor image_count: the frequency groups go "
                "by counts of the evaluated pictures, not by those of the training set."
            )
        categories = [dict(category) for category in dataset["categories"]]
        dataset = {**dataset, "categories": categories}
        if coco:
            dataset = _without_crowds(dataset)
        thresholds = (groups and groups.largest) or ()
        thresholds = thresholds if len(thresholds) == 2 else (RARE_MAX, COMMON_MAX)
        if count_from is not None:
            copy_counts(count_from, categories, *thresholds)
        complete_categories(dataset, *thresholds)
        return cls(dataset, groups, everything_verified=coco)

    @classmethod
    def from_file(
        cls,
        json_file: str | os.PathLike,
        groups: FrequencyGroups | None = None,
        *,
        count_from: str | os.PathLike | None = None,
    ) -> "GroundTruth":
        """As :meth:`from_dataset`, of files.

        Raises:
            FileNotFoundError, ValueError: see :func:`apa_det.data.read_lvis_json`.
        """
        counted = None if count_from is None else read_coco_or_lvis_json(count_from)
        return cls.from_dataset(read_coco_or_lvis_json(json_file), groups, count_from=counted)

    def restricted_to(self, image_ids: np.ndarray) -> "GroundTruth":
        """The same of some pictures only; image counts and groups stay."""
        kept = np.isin(self.image_ids, image_ids)
        annotated = kept[self.annotation_images]
        part = copy.copy(self)
        part.images = [image for image, keep in zip(self.images, kept, strict=True) if keep]
        part.image_ids, part.image_sizes = self.image_ids[kept], self.image_sizes[kept]
        places = np.cumsum(kept) - 1
        part.annotation_images = places[self.annotation_images[annotated]]
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
            part.segmentations = [self.segmentations[i] for i in rows]
        for name in ("verified", "not_exhaustive"):
            pairs = getattr(self, name)
            if pairs is not None:
                images, categories = np.divmod(pairs, len(self.category_ids))
                inside = kept[images]
                pairs = places[images[inside]] * len(self.category_ids) + categories[inside]
                setattr(part, name, pairs)
        return part


def _is_uncounted(category: dict) -> bool:
    return not category.keys() & {"frequency", "image_count"}


def _integers(records: list[dict], key: str) -> np.ndarray:
    return np.array([record[key] for record in records], np.int64)


def _without_crowds(coco: dict) -> dict:
    """The same as ``coco_to_lvis``, but for the negative categories: they would be all others."""
    annotations, dropped = usable_annotations(coco)
    uncertain = defaultdict(set)
    for annotation in dropped:
        uncertain[annotation["image_id"]].add(annotation["category_id"])
    images = [
        {**image, "not_exhaustive_category_ids": sorted(uncertain.get(image["id"], ()))}
        for image in coco["images"]
    ]
    return {**coco, "images": images, "annotations": annotations}
