"""Positions of labels in an image: inside it, next to their boxes, and not on top of each other."""

from collections.abc import Sequence

import numpy as np

_ORDER_COST = 0.02  # of each later candidate, as a fraction of a hidden box
_MAX_ROWS = 12  # candidate rows along the sides of a box
_REACH = 0.3  # of the longer image side: largest distance of a label from its box
_MAX_COVERED = 0.35  # of the image, by labels


def place_labels(
    sizes: np.ndarray, boxes: np.ndarray, width: int, height: int, taken: Sequence[tuple] = ()
) -> list[tuple[int, int] | None]:
    """Place a label for each box.

    Labels touch their boxes where there is room, and hide as little of small boxes as possible.
    Otherwise they get a free position nearby. Labels cover at most 35% of the image.

    Args:
        sizes: (n, 2) integers, width and height of each label in pixels; labels with a width of 0
            are not placed. In descending priority.
        boxes: (n, 4), x0, y0, x1, y1 within the image.
        width, height: of the image.
        taken: x0, y0, x1, y1 of areas that labels must not cover.

    Returns:
        (x, y) of each label's upper left corner. None: there is no room.
    """
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    placed = [tuple(area) for area in taken]
    positions: list[tuple[int, int] | None] = []
    covered = 0
    for (w, h), box in zip(np.asarray(sizes).tolist(), boxes, strict=True):
        position = None
        if 0 < w <= width and h <= height and covered + w * h <= _MAX_COVERED * width * height:
            limits = width - w, height - h
            position = _best(_beside(box, w, h), limits, w, h, boxes, placed)
            if position is None:
                lattice = _nearby(box, w, h, limits, _REACH * max(width, height))
                position = _best(lattice, limits, w, h, boxes, placed)
        positions.append(position)
        if position is not None:
            placed.append((*position, position[0] + w, position[1] + h))
            covered += w * h
    return positions


def _beside(box: np.ndarray, w: int, h: int) -> np.ndarray:
    """Return (m, 2) positions that touch a box, the preferred first."""
    x0, y0, x1, y1 = box
    corners = [(x0, y0 - h), (x0, y0), (x0, y1), (x1 - w, y0 - h)]
    corners += [(x1 - w, y0), (x0, y1 - h), (x1 - w, y1), (x1 - w, y1 - h)]
    rows = y0 + h * np.arange(min(_MAX_ROWS, int((y1 - y0) / h) + 1))
    sides = [(x, y) for y in rows for x in (x1, x0 - w, x0, x1 - w)]
    return np.array(corners + sides)


def _nearby(box: np.ndarray, w: int, h: int, limits: tuple[int, int], reach: float) -> np.ndarray:
    """Return (m, 2) positions on a lattice, in ascending distance from a box."""
    x = np.unique(np.append(np.arange(0, limits[0], max(1, w // 3)), limits[0]))
    y = np.unique(np.append(np.arange(0, limits[1], max(1, h // 2)), limits[1]))
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    gaps = np.maximum(0, np.maximum(box[:2] - grid - (w, h), grid - box[2:]))
    distances = np.hypot(*gaps.T)
    order = np.argsort(distances, kind="stable")
    return grid[order[distances[order] <= reach]]


def _best(
    candidates: np.ndarray,
    limits: tuple[int, int],
    w: int,
    h: int,
    boxes: np.ndarray,
    placed: list[tuple],
) -> tuple[int, int] | None:
    """Return the cheapest candidate, moved into the image, that overlaps no placed label."""
    corners = np.clip(np.rint(candidates), 0, limits).astype(int)
    areas = np.concatenate([corners, corners + (w, h)], 1)
    cost = _ORDER_COST * np.arange(len(areas))
    free = ~(_overlaps(areas, np.array(placed, float).reshape(-1, 4)) > 0).any(1)
    if not free.any():
        return None
    sizes = np.maximum(1, (boxes[:, 2:] - boxes[:, :2]).prod(1))
    cost += (_overlaps(areas, boxes) / sizes).sum(1)
    return tuple(corners[np.where(free, cost, np.inf).argmin()].tolist())


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the (m, n) overlap areas of (m, 4) and (n, 4) boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.maximum(0, high - low).prod(2)
