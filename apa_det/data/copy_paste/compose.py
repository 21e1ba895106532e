"""Paste instances into an image, and update the instances that they cover."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor
from torch.nn import functional as F

from .crops import box_mask, mask_in_box, tight_box


class Piece(NamedTuple):
    """An instance to paste, with its top left corner in the image; parts may lie outside.

    Attributes:
        pixels: (h, w, C), in the format of the image.
        mask: (h, w), bool.
        alpha: (h, w), float32 in [0, 1], opacity of the pixels of the mask; None: opaque.
        category: contiguous id.
        x, y: its corner, in pixels.
    """

    pixels: np.ndarray
    mask: np.ndarray
    alpha: np.ndarray | None
    category: int
    x: int
    y: int

    def within(self, height: int, width: int) -> "Piece":
        """Cut off what lies outside of an image."""
        rows = slice(max(-self.y, 0), max(height - self.y, 0))
        columns = slice(max(-self.x, 0), max(width - self.x, 0))
        return self._replace(
            pixels=self.pixels[rows, columns],
            mask=self.mask[rows, columns],
            alpha=None if self.alpha is None else self.alpha[rows, columns],
            x=max(self.x, 0),
            y=max(self.y, 0),
        )


class Pasted(NamedTuple):
    """The result of :func:`paste`.

    Attributes:
        image: (C, H, W).
        instances: the instances that stay, then those that were pasted, in their order.
        classes: contiguous ids of the pasted classes.
        partial: contiguous ids of classes with a dropped instance of which a part is visible.
    """

    image: Tensor
    instances: Instances
    classes: set[int]
    partial: set[int]


def paste(
    image: Tensor,
    instances: Instances,
    pieces: Sequence[Piece],
    *,
    min_visible: float = 0.0,
    with_masks: bool,
) -> Pasted:
    """Paste instances one after the other, each over all before it.

    Masks lose their covered pixels, and boxes become tight around the visible ones; instances that
    are not covered keep their boxes. Without masks, the visible pixels of a box count. An instance
    is dropped if nothing of it, or less than ``min_visible`` of its pixels, is visible; so is a
    piece of which less than that is inside the image ("Simple Copy-Paste", Ghiasi et al., CVPR
    2021, section 3).

    Args:
        image: (C, H, W); modified in place.
        instances: with ``gt_boxes``, ``gt_classes`` and, if there are masks, ``gt_masks``; not
            modified.
        pieces: what to paste.
        min_visible: fraction in [0, 1].
        with_masks: return masks, as bitmaps.

    Returns:
        The image and its instances; without any piece, they are the given ones.
    """
    height, width = image.shape[-2:]
    inside = [(piece, piece.within(height, width)) for piece in pieces]
    inside = [part for piece, part in inside if _is_visible(part.mask, piece.mask, min_visible)]
    if not inside:
        return Pasted(image, instances, set(), set())
    number = len(instances)
    masks = _bitmaps(instances, len(inside))
    pixels = image.numpy()
    labels = torch.cat([instances.gt_classes, torch.tensor([p.category for p in inside])])
    full_areas: dict[int, int] = {}  # of the covered instances, before they were covered
    for i, piece in enumerate(inside, number):
        window = (
            slice(piece.y, piece.y + piece.mask.shape[0]),
            slice(piece.x, piece.x + piece.mask.shape[1]),
        )
        below = masks[(slice(i), *window)]
        for j in np.flatnonzero((below & piece.mask).any(axis=(1, 2))).tolist():
            full_areas.setdefault(j, int(np.count_nonzero(masks[j])))
            below[j] &= ~piece.mask
        masks[(i, *window)] = piece.mask
        _blend(pixels[(slice(None), *window)], piece)
    boxes = np.zeros((len(masks), 4), np.float32)
    boxes[:number] = instances.gt_boxes.tensor.numpy()
    keep, partial = np.ones(len(masks), bool), set()
    for j in {*full_areas, *range(number, len(masks))}:
        box = tight_box(masks[j])
        visible = int(np.count_nonzero(masks[j]))
        if box is None or visible < min_visible * full_areas.get(j, visible):
            keep[j] = False
            if visible:
                partial.add(int(labels[j]))
        else:
            boxes[j] = box
    result = Instances(instances.image_size)
    kept = torch.from_numpy(keep)
    result.gt_boxes = Boxes(torch.from_numpy(boxes)[kept])
    result.gt_classes = labels[kept]
    if with_masks:
        bitmaps = torch.from_numpy(masks)
        result.gt_masks = BitMasks(bitmaps if keep.all() else bitmaps[kept])
    classes = {*labels[number:][kept[number:]].tolist()}
    return Pasted(image, result, classes, partial)


def _is_visible(part: np.ndarray, whole: np.ndarray, min_visible: float) -> bool:
    visible = np.count_nonzero(part)
    return visible > 0 and visible >= min_visible * np.count_nonzero(whole)


def _bitmaps(instances: Instances, extra: int) -> np.ndarray:
    """Return the masks, or else the filled boxes, and empty ones: (N + extra, H, W), bool."""
    number, (height, width) = len(instances), instances.image_size
    result = np.zeros((number + extra, height, width), bool)
    masks = instances.gt_masks if instances.has("gt_masks") else None
    if isinstance(masks, BitMasks):
        result[:number] = masks.tensor.numpy()
        return result
    for i in range(number):
        if isinstance(masks, PolygonMasks):
            window = mask_in_box(masks.polygons[i], height, width)
        else:
            window = box_mask(instances.gt_boxes.tensor[i].tolist(), height, width)
        if window is not None:
            (x, y), mask = window
            result[i, y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return result


def _blend(target: np.ndarray, piece: Piece) -> None:
    """Write the pixels of a piece into its (C, h, w) window of an image."""
    pixels = piece.pixels.transpose(2, 0, 1)
    if piece.alpha is not None:
        pixels = target + piece.alpha * (pixels.astype(np.float32) - target)
        if target.dtype == np.uint8:
            pixels = pixels.round().astype(np.uint8)
    np.copyto(target, pixels, where=piece.mask)


def soft_edge(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Return the opacity of a mask with a soft edge: the mask after a Gaussian filter.

    Args:
        mask: (h, w), bool.
        sigma: standard deviation in pixels. The filter ends at 3 of them.
    """
    radius = int(np.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    alpha = torch.from_numpy(mask.astype(np.float32))[None, None]
    alpha = F.conv2d(alpha, kernel[None, None, :, None], padding=(radius, 0))
    return F.conv2d(alpha, kernel[None, None, None], padding=(0, radius))[0, 0].numpy()
