"""Crops of instances, from image files or from the samples of a mapper."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.serialize import PicklableWrapper
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from ...errors import UserError
from ..image_files import read_image
from ..mapper import APADatasetMapper, check_size
from ..rle_counts import decode_columns
from .bank import KEY, Draw, corners

# Augmentations that leave colors and shapes as they are
_GEOMETRY = (T.RandomFlip, T.RandomCrop, T.FixedSizeCrop)
_FIELDS = {
    "gt_boxes": ("Boxes",),
    "gt_classes": ("Tensor",),
    "gt_masks": ("PolygonMasks", "BitMasks"),
}
_RESIZING = (T.ResizeShortestEdge, T.ResizeScale, T.Resize)


class Crop(NamedTuple):
    """An instance, and the pixels of its tight box.

    Attributes:
        pixels: (h, w, C), in the format of the samples.
        mask: (h, w), bool.
        category: its contiguous id.
        image_size: height and width of its image.
        has_mask: the samples have masks.
    """

    pixels: np.ndarray
    mask: np.ndarray
    category: int
    image_size: tuple[int, int]
    has_mask: bool

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.mask.nbytes


class Source(Protocol):
    """Where crops come from.

    Attributes:
        name: of the mapper, for messages.
    """

    name: str

    def crop(self, record: dict, index: int) -> Crop | None:
        """Return the crop of an annotation of a dataset dict; None if nothing of it is visible."""

    def scale(self, crop: Crop) -> tuple[float, float]:
        """Draw the factors of height and width that the augmentations resize the image by."""


class FileSource:
    """Crops of image files, resized as by the augmentations of the mapper. They can be cached."""

    def __init__(self, mapper: APADatasetMapper):
        self.name = type(mapper).__name__
        self._mapper = mapper

    def crop(self, record: dict, index: int) -> Crop | None:
        image = read_image(record["file_name"], self._mapper.image_format)
        check_size(record, image)
        annotation = record["annotations"][index]
        height, width = image.shape[:2]
        segmentation = annotation.get("segmentation")
        if segmentation is None:
            window = box_mask(corners(annotation), height, width)
        else:
            window = mask_in_box(segmentation, height, width)
        if window is None:
            return None
        (x, y), mask = window
        pixels = image.reshape(height, width, -1)[y : y + mask.shape[0], x : x + mask.shape[1]]
        has_mask = self._mapper.use_instance_mask
        return Crop(pixels.copy(), mask, annotation["category_id"], (height, width), has_mask)

    def scale(self, crop: Crop) -> tuple[float, float]:
        shape = crop.image_size
        factors = np.ones(2)
        for augmentation in _flat(self._mapper.augmentations):
            if isinstance(augmentation, _RESIZING):
                # Resizing depends on the shape only: this image needs no memory
                image = np.broadcast_to(np.uint8(0), (*shape, 3))
                resize = augmentation.get_transform(image)
                if isinstance(resize, T.ResizeTransform):
                    factors *= resize.new_h / shape[0], resize.new_w / shape[1]
                    shape = resize.new_h, resize.new_w
            elif isinstance(augmentation, T.RandomCrop):
                shape = augmentation.get_crop_size(shape)
            elif isinstance(augmentation, T.FixedSizeCrop):
                size = augmentation.crop_size
                shape = (
                    size if augmentation.pad else (min(shape[0], size[0]), min(shape[1], size[1]))
                )
        return float(factors[0]), float(factors[1])


class MapperSource:
    """Crops of the samples of any mapper, which augments their images."""

    def __init__(self, mapper: Callable[[dict], dict]):
        self.name = getattr(mapper, "__name__", type(mapper).__name__)
        self._mapper = PicklableWrapper(mapper)

    def crop(self, record: dict, index: int) -> Crop | None:
        sample = self._mapper({**record, "annotations": [record["annotations"][index]]})
        if sample is None:
            return None
        instances = require_supported(sample, self.name)
        if not len(instances):
            return None
        if len(instances) > 1:
            raise UserError(
                f"{KEY} needs a mapper that returns the instances of record['annotations'], but "
                f"{self.name} returned {len(instances)} of 1."
            )
        size = instances.image_size
        if instances.has("gt_masks"):
            masks = instances.gt_masks
            polygons = isinstance(masks, PolygonMasks)
            mask = masks.polygons[0] if polygons else masks.tensor[0].numpy()
            window = mask_in_box(mask, *size)
        else:
            window = box_mask(instances.gt_boxes.tensor[0].tolist(), *size)
        if window is None:
            return None
        (x, y), mask = window
        image = sample["image"][:, y : y + mask.shape[0], x : x + mask.shape[1]]
        pixels = image.permute(1, 2, 0).numpy().copy()
        has_mask = instances.has("gt_masks")
        return Crop(pixels, mask, int(instances.gt_classes[0]), size, has_mask)

    def scale(self, crop: Crop) -> tuple[float, float]:
        return 1.0, 1.0


def _flat(augmentations: T.AugmentationList) -> Iterator[T.Augmentation]:
    for augmentation in augmentations.augs:
        if isinstance(augmentation, T.AugmentationList):
            yield from _flat(augmentation)
        else:
            yield augmentation


def build_source(mapper: Callable[[dict], dict]) -> FileSource | MapperSource:
    """Return the faster source, if the mapper is apa_det's and keeps colors and shapes."""
    if type(mapper) is APADatasetMapper:
        if all(isinstance(a, (*_GEOMETRY, *_RESIZING)) for a in _flat(mapper.augmentations)):
            return FileSource(mapper)
    return MapperSource(mapper)


def require_supported(sample: dict, mapper: str) -> Instances:
    """Return the instances of a sample.

    Raises:
        UserError: it lacks what is needed to paste, or has more than can be pasted.
    """
    instances, image = sample.get("instances"), sample.get("image")
    if instances is None or not isinstance(image, Tensor):
        raise UserError(
            f"{KEY} needs samples with instances and a tensor image, but those of {mapper} have "
            f"{', '.join(map(str, sample))}."
        )
    fields = instances.get_fields()
    faults = [(k, v) for k, v in fields.items() if type(v).__name__ not in _FIELDS.get(k, ())]
    faults += [(k, sample[k]) for k in ("proposals", "sem_seg") if k in sample]
    for name, value in faults:
        raise UserError(
            f"{KEY} cannot paste into samples with {name} ({type(value).__name__}): turn it off."
        )
    return instances


def mask_in_box(
    segmentation: Sequence | dict | np.ndarray, height: int, width: int
) -> tuple[tuple[int, int], np.ndarray] | None:
    """Draw polygons or RLE as bitmaps, as detectron2 does, or take a bitmap; keep the tight box.

    Args:
        segmentation: polygons, RLE or a bitmap.
        height, width: of the image.

    Returns:
        x and y of the tight box, and its (h, w) bool bitmap; None for an empty mask.
    """
    if isinstance(segmentation, np.ndarray):
        box = tight_box(segmentation)
        if box is None:
            return None
        x, y, x1, y1 = box
        return (x, y), segmentation[y:y1, x:x1].astype(bool)
    if not len(segmentation):
        return None
    rle = segmentation
    if isinstance(rle, list):
        rle = mask_utils.merge(mask_utils.frPyObjects(rle, height, width))
    elif isinstance(rle["counts"], list):
        rle = mask_utils.frPyObjects(rle, height, width)
    x, y, w, h = mask_utils.toBbox(rle).astype(int).tolist()
    if not (w and h):
        return None
    counts = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
    return (x, y), np.ascontiguousarray(decode_columns(counts, height, x, w)[y : y + h])


def tight_box(bitmap: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 of the pixels of an (H, W) bitmap; None if there are none."""
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_mask(
    box: Sequence[float], height: int, width: int
) -> tuple[tuple[int, int], np.ndarray] | None:
    """Return the pixels that a box (x0, y0, x1, y1) touches, as :func:`mask_in_box`."""
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if x1 <= x0 or y1 <= y0:
        return None
    return (x0, y0), np.ones((y1 - y0, x1 - x0), bool)


def resized(crop: Crop, height: int, width: int) -> Crop:
    """Resize a crop; a pixel of the result is in the mask if at least half of it was."""
    if crop.mask.shape == (height, width):
        return crop
    resize = T.ResizeTransform(*crop.mask.shape, height, width, Image.BILINEAR)
    pixels = resize.apply_image(crop.pixels)
    mask = resize.apply_image(crop.mask.view(np.uint8) * np.uint8(255)) >= 128
    return crop._replace(pixels=pixels, mask=mask)


class CropCache:
    """Crops of chosen instances, up to a number of bytes. Results do not change."""

    def __init__(self, max_bytes: int):
        self._free = max_bytes
        self._crops: dict[Draw, Crop | None] = {}

    def get(self, key: Draw, load: Callable[[], Crop | None]) -> Crop | None:
        if key not in self._crops:
            crop = load()
            size = 0 if crop is None else crop.nbytes
            if size > self._free:
                return crop
            self._free -= size
            self._crops[key] = crop
        return self._crops[key]
