"""Signs that boxes are not [x, y, width, height] in pixels."""

import numpy as np

_MANY = 0.2  # share of boxes beyond their image; detectors that do not clip stay below


class BoxHints:
    """Statistics of boxes that may be corners, or fractions of the image size.

    Boxes may be added in several parts.
    """

    def __init__(self):
        self._count = self._beyond = 0
        self._larger_than_offset = self._fractions = True
        self._area = False

    def add(self, boxes: np.ndarray, sizes: np.ndarray) -> None:
        """Add (N, 4) boxes, and the (N, 2) height and width of their images."""
        ends = boxes[:, :2] + boxes[:, 2:]
        self._count += len(boxes)
        self._beyond += np.count_nonzero((ends > sizes[:, ::-1] + 1).any(axis=1))
        self._larger_than_offset &= bool((boxes[:, 2:] >= boxes[:, :2]).all())
        self._fractions &= bool((boxes >= 0).all() and (boxes <= 1).all())
        self._area |= bool((boxes[:, 2:] > 0).all(axis=1).any())

    def hint(self) -> str | None:
        """Return what the boxes look like, or None if they look right."""
        if self._beyond and (self._larger_than_offset or self._beyond >= _MANY * self._count):
            return (
                f"{self._beyond:,} of {self._count:,} boxes reach beyond their image: are they "
                "corners [x0, y0, x1, y1]? Boxes must be [x, y, width, height]."
            )
        if self._area and self._fractions:
            return (
                f"{self._count:,} of {self._count:,} boxes are smaller than a pixel: are they "
                "scaled to 0...1? Boxes must be in pixels."
            )
        return None
