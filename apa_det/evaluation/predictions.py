"""What a detectron2 model predicts, kept in columns and gathered from several processes."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances
from detectron2.utils import comm

from .detections import Detections, Masks

__all__ = ["PredictionStore", "detections_from_instances"]

# Pictures that each process sends at once: with 300 masks each some tens of megabytes.
_PICTURES_AT_ONCE = 500
_MASKS_AT_ONCE = 32


def detections_from_instances(
    instances: Instances, image_id: int, category_ids: np.ndarray
) -> Detections:
    """A model's output for one picture, as columns.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes``, and maybe ``pred_masks``
            ((N, H, W), whole pictures) or ``pred_masks_rle`` (compressed RLEs), on any device.
        image_id: the picture.
        category_ids: (K,) int64, the dataset's category id of each class of the model.

    Raises:
        ValueError: a class is not below K, or a score or box is not finite.
    """
    classes = instances.pred_classes.cpu().numpy()
    if len(classes) and classes.max() >= len(category_ids):
        raise ValueError(
            f"The model predicts class {classes.max()} (from 0), but the dataset has only "
            f"{len(category_ids)} classes: the model was built for another dataset."
        )
    scores = instances.scores.detach().cpu().float().numpy().copy()
    boxes = instances.pred_boxes.tensor.detach().cpu().float().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError(
            f"The model predicts scores or boxes for picture {image_id} that are not finite."
        )
    masks = None
    if instances.has("pred_masks_rle"):
        masks = Masks.from_rles(instances.pred_masks_rle)
    elif instances.has("pred_masks"):
        masks = _encoded(instances.pred_masks)
    return Detections(
        np.full(len(classes), image_id, np.int64), category_ids[classes], scores, boxes, masks
    )


def _encoded(masks: torch.Tensor) -> Masks:
    blocks = [
        # RLE runs down the columns: each mask transposed in memory is what the encoder reads.
        mask_util.encode(
            block.permute(0, 2, 1).to(torch.uint8).contiguous().cpu().numpy().transpose(2, 1, 0)
        )
        for block in masks.split(_MASKS_AT_ONCE)
    ]
    return Masks.from_rles(list(chain.from_iterable(blocks)) if len(masks) else [])


class PredictionStore:
    """The detections of the pictures seen so far. A picture seen twice counts once."""

    def __init__(self):
        self._pictures: dict[int, Detections] = {}

    def add(self, image_id: int, detections: Detections) -> None:
        self._pictures[image_id] = detections

    def gather(self, distributed: bool) -> tuple[Detections, np.ndarray] | None:
        """The detections of all processes, and the ids of all pictures they saw.

        Args:
            distributed: gather; all processes must call this. Else this process keeps to itself.

        Returns:
            None in every process but the main one.
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
        ids = np.fromiter(self._pictures, np.int64, len(self._pictures))
        yield ids, Detections.concatenate(list(self._pictures.values()))

    def _blocks(self) -> Iterator[tuple[np.ndarray, Detections]]:
        """In the main process, the pictures of all processes, some at a time of each."""
        comm.synchronize()
        ids = np.fromiter(self._pictures, np.int64, len(self._pictures))
        pictures = list(self._pictures.values())
        longest = max(comm.all_gather(len(pictures)))
        for start in range(0, max(longest, 1), _PICTURES_AT_ONCE):
            some = slice(start, start + _PICTURES_AT_ONCE)
            yield from comm.gather((ids[some], Detections.concatenate(pictures[some])), dst=0)


def _without_repeats(
    parts: list[tuple[np.ndarray, Detections]],
) -> Iterator[tuple[np.ndarray, Detections]]:
    seen = np.empty(0, np.int64)
    for ids, detections in parts:
        yield ids, detections.select(~np.isin(detections.image_ids, seen))
        seen = np.concatenate([seen, ids])
