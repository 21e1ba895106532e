"""Predictions of a detectron2 model in columns, gathered from all processes."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances
from detectron2.utils import comm

from ..data import records as contract
from ..data.faults import convert
from ..errors import UserError
from .detections import Detections, Masks

# Images that each process sends at once: some tens of megabytes with 300 masks each.
_IMAGES_AT_ONCE = 500
_MASKS_AT_ONCE = 32


def detections_from_instances(
    instances: Instances, image_id: int, category_ids: np.ndarray
) -> Detections:
    """Convert a model's output for one image to columns.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes``, and optional ``pred_masks``
            ((N, H, W), of the whole image) or ``pred_masks_rle`` (compressed RLEs), on any device.
        image_id: id of the image.
        category_ids: (K,) int64, the dataset's category id of each model class.

    Raises:
        UserError: a class is >= K, a score or box is not finite, or an RLE is invalid.
    """
    classes = instances.pred_classes.cpu().numpy()
    if len(classes) and classes.max() >= len(category_ids):
        raise UserError(
            f"The model predicts class {classes.max()} (from 0), but the dataset has only "
            f"{len(category_ids)} classes. Evaluate on a dataset with the classes of the model."
        )
    scores = instances.scores.detach().cpu().float().numpy().copy()
    boxes = instances.pred_boxes.tensor.detach().cpu().float().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise UserError(f"The model predicts scores or boxes of image {image_id} as NaN or inf.")
    masks = None
    if instances.has("pred_masks_rle"):
        masks = _checked(instances.pred_masks_rle, instances.image_size, image_id)
    elif instances.has("pred_masks"):
        masks = _encoded(instances.pred_masks)
    return Detections(
        np.full(len(classes), image_id, np.int64), category_ids[classes], scores, boxes, masks
    )


def _checked(rles: list[dict], size: tuple[int, int], image_id: int) -> Masks:
    """Return compressed RLEs as masks, after the checks of all masks from outside."""

    def masks(part: list[dict]) -> Masks:
        sizes = np.tile(size, (len(part), 1))
        counts = contract.compressed_counts(part, sizes, "pred_masks_rle")
        return Masks(sizes.astype(np.int32), *counts)

    return convert(rles, masks, f"Image {image_id}: detection")


def _encoded(masks: torch.Tensor) -> Masks:
    blocks = [
        # The encoder reads masks column by column (Fortran order).
        mask_util.encode(
            block.permute(0, 2, 1).to(torch.uint8).contiguous().cpu().numpy().transpose(2, 1, 0)
        )
        for block in masks.split(_MASKS_AT_ONCE)
    ]
    return Masks.from_rles(list(chain.from_iterable(blocks)) if len(masks) else [])


class PredictionStore:
    """The detections of all images so far. An image that is added again replaces the first."""

    def __init__(self):
        self._images: dict[int, Detections] = {}

    def add(self, image_id: int, detections: Detections) -> None:
        self._images[image_id] = detections

    def gather(self, distributed: bool) -> tuple[Detections, np.ndarray] | None:
        """Return the detections and the sorted ids of all images.

        Args:
            distributed: gather from all processes; all must call this. Otherwise return those of
                this process.

        Returns:
            None in all processes but the main one.
        """
        parts = list(self._blocks() if distributed else self._own())
        if not parts:
            return None
        ids = np.concatenate([ids for ids, _ in parts])
        if len(np.unique(ids)) < len(ids):
            parts = list(_without_repeats(parts))
        detections = [detections for _, detections in parts]
        return Detections.concatenate(detections), np.unique(ids)

    def _own(self) -> Iterator[tuple[np.ndarray, Detections]]:
        ids = np.fromiter(self._images, np.int64, len(self._images))
        yield ids, Detections.concatenate(list(self._images.values()))

    def _blocks(self) -> Iterator[tuple[np.ndarray, Detections]]:
        """Gather the images of all processes in the main process, block by block."""
        comm.synchronize()
        ids = np.fromiter(self._images, np.int64, len(self._images))
        images = list(self._images.values())
        longest = max(comm.all_gather(len(images)))
        for start in range(0, max(longest, 1), _IMAGES_AT_ONCE):
            block = slice(start, start + _IMAGES_AT_ONCE)
            yield from comm.gather((ids[block], Detections.concatenate(images[block])), dst=0)


def _without_repeats(
    parts: list[tuple[np.ndarray, Detections]],
) -> Iterator[tuple[np.ndarray, Detections]]:
    seen = np.empty(0, np.int64)
    for ids, detections in parts:
        yield ids, detections.select(~np.isin(detections.image_ids, seen))
        seen = np.concatenate([seen, ids])
