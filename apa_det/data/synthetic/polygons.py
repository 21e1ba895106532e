"""Conversion of binary masks to polygons."""

import numpy as np

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """
    Trace the outline of a mask along pixel edges.

    COCO polygons cannot have holes, so a mask with a hole is cut in two through the hole.
    pycocotools rasterizes the polygons to exactly this mask.

    Args:
        mask: bool, shape (H, W).

    Returns:
        One polygon ``[x0, y0, x1, y1, ...]`` in pixel-corner coordinates per 4-connected part;
        an empty list for an empty mask.
    """
    mask = np.asarray(mask, dtype=bool)
    loops = _outlines(mask)
    hole = next((loop for loop in loops if _signed_area(loop) < 0), None)
    if hole is None:
        return [loop.ravel().tolist() for loop in loops]
    cut = int(hole[:, 0].min())
    left, right = mask.copy(), mask.copy()
    left[:, cut + 1 :] = False
    right[:, : cut + 1] = False
    return mask_to_polygons(left) + mask_to_polygons(right)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return closed loops of (x, y) corners with the mask to the right: outer ones clockwise."""
    padded = np.pad(mask, 1).astype(np.int8)
    below = padded[1:, 1:-1] - padded[:-1, 1:-1]  # +1: the mask starts below this edge
    beside = padded[1:-1, 1:] - padded[1:-1, :-1]  # +1: the mask starts to the right of this edge
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (edges, shift) in enumerate(
        [(below == 1, (0, 0)), (beside == -1, (0, 0)), (below == -1, (1, 0)), (beside == 1, (0, 1))]
    ):
        ys, xs = np.nonzero(edges)
        for corner in zip((xs + shift[0]).tolist(), (ys + shift[1]).tolist(), strict=True):
            leaving.setdefault(corner, []).append(direction)
    loops = []
    while leaving:
        corner = start = next(iter(leaving))
        direction = None
        loop = []
        while True:
            options = leaving[corner]
            # Where two parts touch at a corner, turning right keeps them apart.
            turn = options[0]
            if len(options) == 2 and direction is not None:
                turn = (direction + 1) % 4
            options.remove(turn)
            if not options:
                del leaving[corner]
            if turn != direction:
                loop.append(corner)
            direction = turn
            corner = (corner[0] + _STEPS[turn][0], corner[1] + _STEPS[turn][1])
            if corner == start:
                break
        loops.append(np.array(loop))
    return loops


def _signed_area(loop: np.ndarray) -> float:
    x, y = loop[:, 0], loop[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
