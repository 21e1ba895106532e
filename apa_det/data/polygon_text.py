"""Polygons in the text of a JSON file, read as integers: faster than by the JSON parser.

It takes text as LVIS and ``json.dump`` write it: polygons directly behind their key, and numbers >=
0 with at most two decimals. Other text is left to the parser.
"""

from typing import NamedTuple
from uuid import uuid4

import numpy as np

_STARTS = ('"segmentation": [[', '"segmentation":[[')
_CHARACTERS = b"0123456789., ;|"  # the last two end a polygon and a mask
_COMMA, _DOT, _ZERO, _SPACE, _POLYGON_END, _MASK_END = b",.0 ;|"
_MAX_DIGITS = 7  # before the decimal point, so that hundredths fit into 32 bits


class Polygons(NamedTuple):
    """The polygons of masks.

    Attributes:
        points: (B,) int32, all coordinates x, y in hundredths of a pixel.
        lengths: (P,) int64, the number of coordinates of each polygon.
        numbers: (N,) int64, the number of polygons of each mask.
        whole: (N,) bool, whether all coordinates of a mask are integers, such as 3 but not 3.0.
    """

    points: np.ndarray
    lengths: np.ndarray
    numbers: np.ndarray
    whole: np.ndarray


class PolygonCutter:
    """Cuts the polygons out of JSON text.

    Attributes:
        key: the key of the records whose "segmentation" was cut out, with the index of the mask. No
            file contains it.
        polygons: the masks that were cut out of the last text.
    """

    def __init__(self):
        self.key = uuid4().hex
        self.polygons: Polygons | None = None

    def cut(self, text: str) -> str:
        """Return the text with :attr:`key` in place of masks, or the same text."""
        self.polygons = None
        start = _STARTS[0] if _STARTS[0] in text else _STARTS[1]
        head, *parts = text.split(start)
        masks, rests = [], []
        for part in parts:
            mask, end, rest = part.partition("]]")
            if not end:
                return text
            masks.append(mask)
            rests.append(rest)
        self.polygons = parse_polygons(masks) if masks else None
        if self.polygons is None:
            return text
        return head + "".join([f'"{self.key}":{i}{rest}' for i, rest in enumerate(rests)])


def parse_polygons(masks: list[str]) -> Polygons | None:
    """Parse masks such as "1.25,2,3.5],[4,5,6", without their outer brackets.

    Args:
        masks: at least one.

    Returns:
        The polygons; None if the text is invalid JSON, or has numbers that are negative, have an
        exponent or more than two decimals.
    """
    joined = "|".join(masks)
    if ";" in joined or joined.count("|") >= len(masks) or not joined.isascii():
        return None
    joined = joined.replace("], [", ";").replace("],[", ";")
    data = f"|||{joined}|".encode()
    if data.translate(None, _CHARACTERS):
        return None
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero((text == _COMMA) | (text >= _POLYGON_END))[2:]
    starts, ends = ends[:-1] + 1, ends[1:]
    spaced = text[starts] == _SPACE  # after a comma
    starts += spaced
    one, two = text[ends - 2] == _DOT, text[ends - 3] == _DOT  # decimals
    digits = ends - starts - 2 * one - 3 * two
    if (
        digits.min() < 1
        or data.count(b" ") != np.count_nonzero(spaced)
        or digits.max() > _MAX_DIGITS
        or data.count(b".") != np.count_nonzero(one) + np.count_nonzero(two)
        or (text[ends - 1] == _DOT).any()
        or ((text[starts] == _ZERO) & (digits > 1)).any()
    ):
        return None
    values = (text - np.uint8(_ZERO)).astype(np.int32)
    stops = starts + digits
    points = one * (10 * values[ends - 1]) + two * (10 * values[ends - 2] + values[ends - 1])
    for i in range(int(digits.max())):
        points += np.where(digits > i, 100 * 10**i * values[stops - 1 - i], 0)
    last = np.flatnonzero(text[ends] != _COMMA)  # coordinates of polygons
    last_polygons = np.flatnonzero(text[ends[last]] == _MASK_END)
    lengths, numbers = np.diff(last, prepend=-1), np.diff(last_polygons, prepend=-1)
    first = np.append(0, last[last_polygons][:-1] + 1)  # coordinates of masks
    whole = np.bitwise_or.reduceat(one | two, first) == 0
    return Polygons(points.astype(np.int32, copy=False), lengths, numbers, whole)
