"""Training images with pasted instances, whatever their mapper."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from detectron2.data import MetadataCatalog
from torch.utils.data import Dataset

from ...errors import UserError
from ..class_names import category_ids
from ..dataset_records import OF_DICTS
from ..lvis_format import ensure_metadata
from .bank import KEY, Draw, InstanceBank
from .compose import Pasted, Piece, paste, soft_edge
from .crops import Crop, CropCache, FileSource, build_source, require_supported, resized
from .settings import CopyPaste

logger = logging.getLogger(__name__)

_NEGATIVE, _UNCERTAIN = "neg_category_ids", "not_exhaustive_category_ids"
_BYTES = 4  # of a pixel of a crop: three colors and the mask


class Images(Protocol):
    """The samples of a training set, of a :class:`BadImageReplacer`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...

    def apply(self, index: int, function: Callable[[dict], object]) -> object: ...


class PastedImages(Dataset):
    """Images of a training set with instances pasted into their samples.

    All random numbers are NumPy's global ones, drawn after those of the mapper.
    """

    def __init__(
        self,
        images: Images,
        *,
        mapper: Callable[[dict], dict],
        bank: InstanceBank,
        settings: CopyPaste,
        file_ids: Sequence[int] | None = None,
    ):
        """
        Args:
            images: samples of the training set.
            mapper: what made them.
            bank: of the same training set.
            settings: see :class:`CopyPaste`.
            file_ids: category id in the samples' lists of each contiguous id.
        """
        self._images, self._bank, self._settings = images, bank, settings
        self._file_ids = file_ids
        self._source = build_source(mapper)
        self._owns_images = isinstance(self._source, FileSource)  # other mappers may keep theirs
        self._cache, self._cached = CropCache(int(settings.cache_mb * 1e6)), frozenset()
        if not self._owns_images:
            logger.info(
                "Copy-paste: %s runs once more for each pasted instance; no crops are kept.",
                self._source.name,
            )
            return
        chosen, share = bank.most_drawn(settings.cache_mb * 1e6 / _BYTES)
        self._cached = frozenset(bank.classes[chosen].tolist())
        logger.info(
            "Copy-paste: crops of %d of %d classes, %.0f%% of what is pasted, are kept in at most "
            "%g MB of memory per process that loads images (INPUT.COPY_PASTE.CACHE_MB, "
            "dataloader.train.copy_paste.cache_mb).",
            *(len(self._cached), len(bank.classes), 100 * share, settings.cache_mb),
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        """Return the sample of an image, or of its replacement, with pasted instances.

        Raises:
            UserError: too many images are bad, or nothing can be pasted into the sample.
        """
        sample = self._images[index]
        settings = self._settings
        instances = require_supported(sample, self._source.name)
        if np.random.rand() >= settings.prob:
            return sample
        size = tuple(sample["image"].shape[-2:])
        draws = [self._bank.draw() for _ in range(np.random.randint(settings.max_instances) + 1)]
        crops = [crop for crop in map(self._crop, draws) if crop is not None]
        has_masks = instances.has("gt_masks")
        image = sample["image"] if self._owns_images else sample["image"].clone()
        result = paste(
            *(image, instances, [self._placed(crop, size) for crop in crops]),
            min_visible=settings.min_visible,
            with_masks=has_masks or not len(instances) and any(crop.has_mask for crop in crops),
        )
        if not result.classes:
            return sample
        lists = _federated_lists(sample, result, self._file_ids)
        return {**sample, "image": result.image, "instances": result.instances, **lists}

    def _crop(self, draw: Draw) -> Crop | None:
        def load() -> Crop | None:
            return self._images.apply(
                draw.image, lambda record: self._source.crop(record, draw.annotation)
            )

        return self._cache.get(draw, load) if draw.category in self._cached else load()

    def _placed(self, crop: Crop, size: tuple[int, int]) -> Piece:
        """Scale, flip and place a crop at random. One larger than the image is cut off."""
        settings = self._settings
        factor, scale = np.random.uniform(*settings.scale), self._source.scale(crop)
        shape = [max(1, round(n * k * factor)) for n, k in zip(crop.mask.shape, scale, strict=True)]
        flips = np.random.rand() < settings.flip
        y, x = (_offset(n, side) for n, side in zip(shape, size, strict=True))
        crop = resized(crop, *shape)
        pixels, mask = (a[:, ::-1] if flips else a for a in (crop.pixels, crop.mask))
        alpha = soft_edge(mask, settings.blend) if settings.blend else None
        return Piece(pixels, mask, alpha, crop.category, x, y)


def _offset(length: int, side: int) -> int:
    """Draw where an interval starts in an image side: inside of it, or covering it if longer."""
    return min(0, side - length) + np.random.randint(abs(side - length) + 1)


def _federated_lists(sample: dict, result: Pasted, file_ids: Sequence[int] | None) -> dict:
    """Return the category lists of a sample after instances were pasted into it.

    A pasted class is no negative anymore. If it was neither negative nor annotated, the image may
    have more of it: it is not exhaustively annotated. Nor is a class with a dropped instance of
    which a part is visible.
    """
    lists = {name: sample[name] for name in (_NEGATIVE, _UNCERTAIN) if sample.get(name) is not None}
    if not lists:
        return {}
    annotated = {*sample["instances"].gt_classes.tolist()}
    shown = {int(file_ids[c]) for c in result.classes | result.partial}
    uncertain = {int(file_ids[c]) for c in result.partial}
    if _NEGATIVE in lists:
        unknown = {int(file_ids[c]) for c in result.classes - annotated}
        uncertain |= unknown - {*lists[_NEGATIVE]}
        lists[_NEGATIVE] = [i for i in lists[_NEGATIVE] if i not in shown]
    if _UNCERTAIN in lists:
        before = [*lists[_UNCERTAIN]]
        lists[_UNCERTAIN] = before + sorted(uncertain - {*before})
    return lists


def prepare_pasting(
    dataset: Sequence[dict],
    mapper: Callable[[dict], dict],
    settings: CopyPaste,
    *,
    dataset_names: Sequence[str] = (),
    repeat_thresh: float = 0.0,
) -> Callable[[Images], PastedImages]:
    """Build the bank of a training set, and return what pastes from it into its images.

    Args:
        dataset: detectron2 dataset dicts.
        mapper: of the training images.
        settings: see :class:`CopyPaste`.
        dataset_names: the registered datasets in ``dataset``, for the ids in its lists of
            categories.
        repeat_thresh: see :class:`InstanceBank`.

    Raises:
        UserError: instances cannot be pasted into these images.
    """
    if not isinstance(dataset, OF_DICTS):
        raise UserError(f"{KEY} needs datasets of dicts: turn it off.")
    if getattr(mapper, "use_keypoint", False):
        raise UserError(f"{KEY} does not work with keypoints: turn it off.")
    file_ids = _file_ids(dataset, dataset_names)
    bank = InstanceBank(
        dataset,
        sampling=settings.sampling,
        repeat_thresh=repeat_thresh,
        file_ids=file_ids,
    )
    return partial(PastedImages, mapper=mapper, bank=bank, settings=settings, file_ids=file_ids)


def _file_ids(dataset: Sequence[dict], names: Sequence[str]) -> list[int] | None:
    """Return the category id in the records' lists of each contiguous id; None without lists."""
    if not any(name in record for record in dataset for name in (_NEGATIVE, _UNCERTAIN)):
        return None
    if not names:
        raise UserError(
            f"{KEY} updates {_NEGATIVE} and {_UNCERTAIN}, and needs the name of the dataset for "
            "it: set dataset_names (dataloader.train.dataset_names in a LazyConfig)."
        )
    ids = []
    for name in names:
        ensure_metadata(name)
        metadata = MetadataCatalog.get(name)
        if not metadata.get("thing_classes"):
            raise UserError(
                f"{KEY} updates {_NEGATIVE} and {_UNCERTAIN}, but the metadata of {name} has no "
                "thing_classes: set them."
            )
        ids.append(category_ids(metadata).tolist())
    different = [name for name, other in zip(names, ids, strict=True) if other != ids[0]]
    if different:
        raise UserError(
            f"{KEY} updates {_NEGATIVE} and {_UNCERTAIN}, but the classes of {different[0]} have "
            f"other category ids than those of {names[0]}: use the same ids in both files."
        )
    return ids[0]
