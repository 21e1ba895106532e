"""The training loader, with any registered sampler. It logs the expected contents of an epoch."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import build_detection_train_loader, samplers
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import Sampler

from ...errors import UserError
from ...utils.progress import heartbeat
from ..catalog import get_dataset_records
from ..copy_paste import CopyPaste
from ..copy_paste.images import prepare_pasting
from ..dataset_records import OF_DICTS, DatasetRecords
from ..mapper import APADatasetMapper, has_rle, instances
from ..stream import TrainLoader
from .bad_images import KEY, BadImageReplacer
from .counts import class_groups, count_classes, epoch_table
from .registry import TRAIN_SAMPLER_REGISTRY

logger = logging.getLogger(__name__)

# These need the datasets separately, so detectron2 builds them. Old versions lack their key.
_DETECTRON2_SAMPLERS = ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler")
_DETECTRON2_KEY = "TRAIN_REPEAT_FACTOR"


def require_train_sampler(cfg: CfgNode) -> None:
    """Raise a UserError unless ``DATALOADER.SAMPLER_TRAIN`` names a sampler."""
    others = _DETECTRON2_SAMPLERS if _DETECTRON2_KEY in cfg.DATASETS else ()
    _require_known(cfg.DATALOADER.SAMPLER_TRAIN, "DATALOADER.SAMPLER_TRAIN", others)


def _require_known(name: str, key: str, others: Sequence[str] = ()) -> None:
    names = [*(registered for registered, _ in TRAIN_SAMPLER_REGISTRY), *others]
    if name not in names:
        raise UserError(f"{key} must be one of {', '.join(names)}; got {name!r}.")


def _from_config(cfg: CfgNode, mapper: Callable | None = None) -> dict:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    require_train_sampler(cfg)
    model, datasets = cfg.MODEL, cfg.DATASETS
    min_keypoints = model.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0
    dataset = get_dataset_records(
        datasets.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=min_keypoints,
        proposal_files=datasets.PROPOSAL_FILES_TRAIN if model.LOAD_PROPOSALS else None,
    )
    sampler = None
    loader = cfg.DATALOADER
    dataset = without_small(dataset, loader.MIN_IMAGE_SIDE, loader.MIN_BOX_SIDE)
    if isinstance(dataset, OF_DICTS) and name in TRAIN_SAMPLER_REGISTRY:
        logger.info("Using training sampler %s", name)
        with heartbeat(f"Building {name}"):
            sampler = TRAIN_SAMPLER_REGISTRY.get(name)(cfg, dataset)
    mapper = mapper or APADatasetMapper(cfg, is_train=True)
    return {
        **build_detection_train_loader.from_config(cfg, mapper, dataset=dataset, sampler=sampler),
        "dataset_names": datasets.TRAIN,
        "seed": cfg.SEED if cfg.SEED >= 0 else None,
        "max_bad_images": cfg.INPUT.MAX_BAD_IMAGES,
        "copy_paste": cfg.INPUT.COPY_PASTE,
        "repeat_thresh": cfg.DATALOADER.REPEAT_THRESHOLD,
    }


@configurable(from_config=_from_config)
def build_train_loader(
    dataset: Sequence[dict],
    *,
    mapper: Callable[[dict], dict] | None,
    total_batch_size: int,
    sampler: str | Sampler | None = "TrainingSampler",
    repeat_thresh: float = 0.0,
    repeat_sqrt: bool = True,
    repeat_rounding: str = "stochastic",
    min_image_side: float = 0,
    min_box_side: float = 0.0,
    subset_ratio: float = 1.0,
    frequent_share: float = 0.5,
    dataset_names: str | Sequence[str] = (),
    seed: int | None = None,
    max_bad_images: int = 0,
    copy_paste: Mapping | CopyPaste | None = None,
    **kwargs,
) -> Iterable[list[dict]]:
    """Build a :class:`TrainLoader` with a sampler of ``TRAIN_SAMPLER_REGISTRY``.

    Logs the number of images, instances and classes of each frequency group, in the dataset and
    as expected in an epoch. From a config: ``build_train_loader(cfg, mapper=None)``.

    Args:
        dataset: a list of detectron2 dataset dicts, :class:`DatasetRecords` as from
            :func:`get_dataset_records`, or a PyTorch dataset (then ``sampler`` must be its
            sampler, or None, and the loader is detectron2's, which cannot be resumed exactly).
        mapper: from dataset dicts to samples, e.g. :class:`apa_det.data.APADatasetMapper`.
        total_batch_size: images per batch, over all processes.
        sampler: a registered name, or a sampler of this dataset. The following arguments are
            passed to registered samplers that accept them.
        repeat_thresh, repeat_sqrt, repeat_rounding: see :class:`RepeatFactorTrainingSampler`.
        min_image_side, min_box_side: see :func:`without_small`; not if ``sampler`` is a sampler.
        subset_ratio: see :class:`RandomSubsetTrainingSampler`.
        frequent_share: see :class:`UndersamplingTrainingSampler`.
        dataset_names: registered datasets in ``dataset``, for the frequency groups; see
            :func:`class_groups`.
        seed: seed of the sampler and the mapper. None: random ones, shared by all processes.
        max_bad_images: number of images per process to replace if the mapper raises a UserError;
            see :class:`apa_det.data.sampling.bad_images.BadImageReplacer`.
        copy_paste: see :class:`apa_det.data.CopyPaste`; or its arguments as a group of keys.
        kwargs: further arguments of :class:`TrainLoader`.

    Raises:
        UserError: an unknown sampler, or arguments that it rejects; ``max_bad_images`` < 0; no
            image is large enough; the mapper uses masks, and an instance of ``dataset`` has none;
            or ``copy_paste`` is invalid, or does not work with the dataset or the mapper.
    """
    paste = CopyPaste.of(copy_paste)
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    if max_bad_images < 0:
        raise UserError(f"{KEY} must be >= 0, got {max_bad_images}.")
    if isinstance(dataset, OF_DICTS) and getattr(mapper, "use_instance_mask", False):
        _require_masks(dataset, mapper)
    if isinstance(sampler, Sampler) and (min_image_side or min_box_side):
        raise UserError(
            "min_image_side and min_box_side change the dataset, for which the sampler is already "
            "built: set both to 0, or give the name of a sampler."
        )
    dataset = without_small(dataset, min_image_side, min_box_side)
    if isinstance(sampler, str):
        _require_known(sampler, "sampler")
        settings = {
            "repeat_thresh": repeat_thresh,
            "repeat_sqrt": repeat_sqrt,
            "repeat_rounding": repeat_rounding,
            "subset_ratio": subset_ratio,
            "frequent_share": frequent_share,
            "dataset_names": names,
            "seed": seed,
        }
        sampler_class = TRAIN_SAMPLER_REGISTRY.get(sampler)
        accepted = inspect.signature(sampler_class).parameters
        with heartbeat(f"Building {sampler}"):
            sampler = sampler_class(dataset, **{k: v for k, v in settings.items() if k in accepted})
    _log_epoch(dataset, sampler, names)
    change_images = None
    if paste.enabled:
        change_images = prepare_pasting(
            *(dataset, mapper, paste), dataset_names=names, repeat_thresh=repeat_thresh
        )
    if not isinstance(dataset, OF_DICTS):
        if max_bad_images:
            dataset, mapper = BadImageReplacer(dataset, mapper, max_bad_images, seed), None
        arguments = {"mapper": mapper, "sampler": sampler, "total_batch_size": total_batch_size}
        return build_detection_train_loader(dataset, **arguments, **kwargs)
    batch_size, rest = divmod(total_batch_size, comm.get_world_size())
    if rest or not batch_size:
        raise UserError(
            f"The batch size must be a multiple of the {comm.get_world_size()} processes, got "
            f"{total_batch_size}: set SOLVER.IMS_PER_BATCH (dataloader.train.total_batch_size)."
        )
    if seed is None:
        seed = comm.shared_random_seed()
    if sampler is None:
        sampler = samplers.TrainingSampler(len(dataset), seed=seed)
    arguments = {"batch_size": batch_size, "seed": seed, "max_bad_images": max_bad_images}
    arguments["change_images"] = change_images
    return TrainLoader(dataset, mapper, sampler, **arguments, **kwargs)


def _require_masks(dataset: Sequence[dict], mapper: Callable[[dict], dict]) -> None:
    if isinstance(dataset, DatasetRecords):
        owners = dataset.owners
        without = (dataset[i] for i in owners[~dataset.has_mask][:1].tolist())
        images = len(np.unique(owners[dataset.has_rle]))
    else:
        without = (
            record
            for record in dataset
            if any(instance.get("segmentation") is None for instance in instances(record))
        )
        images = sum(map(has_rle, dataset))
    if record := next(iter(without), None):
        raise UserError(
            f"An annotation of the image {record.get('file_name')} has no segmentation, but "
            "the model trains masks: add it, or set MODEL.MASK_ON to False (in a LazyConfig, "
            "dataloader.train.mapper.use_instance_mask, and remove the mask head)."
        )
    if images and isinstance(mapper, APADatasetMapper) and mapper.instance_mask_format == "polygon":
        logger.info("%d images have RLE masks: all their masks are used as bitmaps.", images)


def without_small(
    dataset: Sequence[dict], min_image_side: float = 0, min_box_side: float = 0.0
) -> Sequence[dict]:
    """Leave out small images, and boxes that are small or outside of their image.

    As mmdetection does. An image that loses all its boxes stays.

    Args:
        dataset: detectron2 dataset dicts; they are not modified.
        min_image_side: minimum width and height of an image, in pixels. 0: keep all.
        min_box_side: minimum width and height of a box, in pixels. 0: keep all.

    Raises:
        UserError: no image is left, or ``dataset`` is a PyTorch dataset.
    """
    if not (min_image_side or min_box_side):
        return dataset
    if not isinstance(dataset, OF_DICTS):
        raise UserError(
            "DATALOADER.MIN_IMAGE_SIDE and MIN_BOX_SIDE need datasets of dicts: set both to 0."
        )
    if isinstance(dataset, DatasetRecords):
        large = dataset.select(np.flatnonzero(dataset.sizes.min(axis=1) >= min_image_side))
    else:
        large = [r for r in dataset if min(r["width"], r["height"]) >= min_image_side]
    if len(dataset) and not len(large):
        raise UserError(
            f"No training image has sides of {min_image_side} pixels. Lower "
            "DATALOADER.MIN_IMAGE_SIDE (min_image_side in a LazyConfig)."
        )
    result, boxes = large, 0
    if min_box_side and isinstance(large, DatasetRecords):
        is_large = _are_large(large, min_box_side)
        result, boxes = large.with_annotations(is_large), np.count_nonzero(~is_large)
    elif min_box_side:
        result = [_with_large_boxes(record, min_box_side) for record in large]
        boxes = sum(
            len(a.get("annotations", ())) - len(b.get("annotations", ()))
            for a, b in zip(large, result, strict=True)
        )
    logger.info(
        "Left out %d images with a side below %g, and %d boxes with a side below %g or outside of "
        "their image.",
        *(len(dataset) - len(large), min_image_side, boxes, min_box_side),
    )
    return result


def _with_large_boxes(record: dict, min_side: float) -> dict:
    annotations = record.get("annotations", [])
    large = [a for a in annotations if _is_large(a, record, min_side)]
    return record if len(large) == len(annotations) else {**record, "annotations": large}


def _are_large(records: DatasetRecords, min_side: float) -> np.ndarray:
    starts, sides = records.boxes[:, :2], records.boxes[:, 2:]
    ends = np.minimum(starts + sides, records.sizes[records.owners, ::-1])
    return ((ends > np.maximum(starts, 0)) & (sides >= min_side)).all(axis=1)


def _is_large(annotation: dict, record: dict, min_side: float) -> bool:
    x, y, w, h = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
    inside = min(x + w, record["width"]) > max(x, 0) and min(y + h, record["height"]) > max(y, 0)
    return inside and min(w, h) >= min_side


def _log_epoch(dataset: Sequence[dict], sampler: Sampler | None, names: Sequence[str]) -> None:
    if isinstance(sampler, samplers.RepeatFactorTrainingSampler):
        repeats = sampler._int_part + sampler._frac_part
    else:
        repeats = getattr(sampler, "repeats", None)
    if not isinstance(dataset, OF_DICTS) or repeats is None:
        return
    counts = count_classes(dataset)
    groups = class_groups(counts, names)
    logger.info(
        "Expected contents of an epoch of %s:\n%s",
        type(sampler).__name__,
        epoch_table(counts, groups, repeats.double().numpy()),
    )
