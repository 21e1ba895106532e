"""The contract of dataset and result records: what a value may be, and what is wrong otherwise.

A check takes the values of one key of many records, and is vectorized. It raises a :class:`Fault`
that describes the first value: check records one by one, as :func:`apa_det.data.faults.faults`
does, to name the invalid ones. Masks pass through here before pycocotools' C code reads them.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NoReturn

import numpy as np
from pycocotools import mask as mask_utils

from ..text import shown
from .faults import Fault, column
from .rle_counts import valid_counts

MAX_ID = 2**63 - 1
MAX_NUMBER = 2**53  # of pixels and counts: float64 has gaps between larger integers
MAX_SIDE = 2**16  # pixels of an image
MAX_PIXELS = 2**31
MAX_OUTLINE = 2**22  # pixels along a polygon; pycocotools needs about 100 bytes for each

_INTEGERS = (int, np.integer)
_NUMBERS = (int, float, np.integer, np.floating)


def integers(
    values: Sequence,
    key: str,
    must: str = "be an integer that fits into 64 bits",
    *,
    low: int = -MAX_ID - 1,
    high: int = MAX_ID,
    whole_floats: bool = False,
) -> np.ndarray:
    """Return integers as (N,) int64.

    Args:
        values: integers from ``low`` to ``high``.
        key: their key.
        must: what they must do, for the message.
        low, high: the limits.
        whole_floats: also accept numbers such as 3.0.
    """
    array = _array(_whole(values) if whole_floats else values, np.int64, _INTEGERS)
    if array is None or array.size and not low <= array.min() <= array.max() <= high:
        raise Fault(key, f"must {must}, got {shown(values[0])}")
    return array


def numbers(
    values: Sequence, key: str, must: str, *, low: float = -np.inf, high: float = np.inf
) -> np.ndarray:
    """Return finite numbers as (N,) float64. The arguments are those of :func:`integers`."""
    array = _array(values, np.float64, _NUMBERS)
    if array is None or not (np.isfinite(array) & (array >= low) & (array <= high)).all():
        raise Fault(key, f"must {must}, got {shown(values[0])}")
    return array


def boxes(values: Sequence, key: str = "bbox") -> np.ndarray:
    """Return boxes [x, y, width, height] as (N, 4) float64, in pixels. Sizes may be negative."""
    flat = None
    if _are(values, (list, tuple)) and set(map(len, values)) <= {4}:
        flat = _array(_flat(values), np.float64, _NUMBERS)
    if flat is None or not (np.abs(flat) <= MAX_NUMBER).all():  # False for NaN
        what = "be [x, y, width, height], 4 finite numbers of pixels"
        raise Fault(key, f"must {what}, got {shown(values[0])}")
    return flat.reshape(-1, 4)


def image_sizes(records: Sequence[dict]) -> np.ndarray:
    """Return ``height`` and ``width`` of image records as (N, 2) int64."""
    must = f"be an integer from 1 to {MAX_SIDE:,} (pixels)"
    sides = [
        integers(column(records, key, "add it, in pixels"), key, must, low=1, high=MAX_SIDE)
        for key in ("height", "width")
    ]
    sizes = np.stack(sides, axis=1)
    if (sizes.prod(axis=1) > MAX_PIXELS).any():
        size = " x ".join(f"{side:,}" for side in sizes[0])
        raise Fault(
            "height", f"x width must be at most {MAX_PIXELS:,} pixels, got {size}; split the image"
        )
    return sizes


def id_lists(values: Sequence, key: str) -> None:
    """Check lists of category ids, which may be empty."""
    if not _are(values, (list,)) or _array(_flat(values), np.int64, _INTEGERS) is None:
        raise Fault(key, f"must be a list of category ids, got {shown(values[0])}")


def segmentations(
    values: Sequence, sizes: np.ndarray, key: str = "segmentation", *, short_polygons: bool = False
) -> None:
    """Check masks: polygons, or RLE that decodes to exactly the pixels of the image.

    Polygons have an even number of at least 6 finite coordinates, at most one image size beyond
    their image.

    Args:
        values: N masks.
        sizes: (N, 2) int64, height and width of their images.
        key: their key.
        short_polygons: do not check polygons with fewer than 6, or with an odd number of,
            coordinates.
    """
    rles = [i for i, value in enumerate(values) if type(value) is dict]
    polygons = [i for i, value in enumerate(values) if type(value) is list]
    if len(rles) + len(polygons) < len(values):
        raise Fault(key, f"must be polygons or RLE, got {shown(values[0])}; convert the mask")
    if rles:
        _check_rles([values[i] for i in rles], sizes[rles], key)
    if polygons:
        _check_polygons([values[i] for i in polygons], sizes[polygons], key, short_polygons)


def compressed_counts(
    values: Sequence, sizes: np.ndarray, key: str = "segmentation"
) -> tuple[np.ndarray, np.ndarray]:
    """Check masks as :func:`segmentations` does, and return them as compressed RLE.

    Returns:
        (B,) uint8, the joined counts of all masks, and (N + 1,) int64, the offset of each mask.
    """
    if set(map(type, values)) <= {dict}:
        rle = _check_rles(values, sizes, key)
        if rle is not None:
            return rle
    else:
        segmentations(values, sizes, key)
    values = [compressed(value, *size) for value, size in zip(values, sizes.tolist(), strict=True)]
    return _check_rles(values, sizes, key)


def rle_sizes(values: Sequence, key: str = "segmentation") -> np.ndarray:
    """Return the sizes of RLE as (N, 2) int64, with the limits of :func:`image_sizes`."""
    sizes = [value.get("size") if type(value) is dict else None for value in values]
    if not _are(sizes, (list, tuple)) or not set(map(len, sizes)) <= {2}:
        raise Fault(key, f"must be RLE with size and counts, got {shown(values[0])}")
    return image_sizes([{"height": height, "width": width} for height, width in sizes])


def to_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Return the compressed RLE of a mask, after the checks of :func:`segmentations`."""
    segmentations([segmentation], np.array([[height, width]]))
    return compressed(segmentation, height, width)


def compressed(segmentation: list | dict, height: int, width: int) -> dict:
    """Return the compressed RLE of a mask that has passed :func:`segmentations`."""
    if type(segmentation) is dict and type(segmentation["counts"]) is not list:
        return segmentation
    rles = mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.merge(rles) if type(rles) is list else rles


def _check_rles(
    values: Sequence[dict], sizes: np.ndarray, key: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Check RLE. If all are compressed, return their joined counts and offsets."""
    try:
        found = [value["size"] for value in values]
        counts = [value["counts"] for value in values]
    except KeyError:
        what = "be RLE with size and counts"
        raise Fault(key, f"must {what}, got {shown(values[0])}; recreate the mask") from None
    if not _equal(found, sizes.tolist()):
        raise Fault(
            key,
            f"size must be that of its image, {sizes[0].tolist()} (height, width), got "
            f"{shown(found[0])}; recreate the mask",
        )
    pixels = sizes.prod(axis=1)
    lists = [i for i, c in enumerate(counts) if type(c) is list]
    if not lists:
        return _check_compressed(counts, pixels, key)
    _check_runs([counts[i] for i in lists], pixels[lists], key)
    others = [i for i, c in enumerate(counts) if type(c) is not list]
    _check_compressed([counts[i] for i in others], pixels[others], key)
    return None


def _check_compressed(
    counts: Sequence, pixels: np.ndarray, key: str
) -> tuple[np.ndarray, np.ndarray]:
    text = None
    if set(map(type, counts)) <= {str}:
        text = "".join(counts)
        text = text.encode() if text.isascii() else None
    elif set(map(type, counts)) <= {str, bytes}:
        counts = [c if type(c) is bytes else c.encode(errors="surrogatepass") for c in counts]
        text = b"".join(counts)
    if text is not None:
        text, offsets = np.frombuffer(text, np.uint8), _offsets(counts)
        if valid_counts(text, offsets, pixels).all():
            return text, offsets
    _raise_counts(counts[0], pixels[0], key)


def _check_runs(counts: Sequence[list], pixels: np.ndarray, key: str) -> None:
    """Check the counts of uncompressed RLE."""
    runs = _array(_flat(counts), np.int64, _INTEGERS) if all(counts) else None
    if (
        runs is None
        or not 0 <= runs.min() <= runs.max() <= MAX_PIXELS
        or (np.add.reduceat(runs, _offsets(counts)[:-1]) != pixels).any()
    ):
        _raise_counts(counts[0], pixels[0], key)


def _raise_counts(counts, pixels: int, key: str) -> NoReturn:
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        raise Fault(
            key,
            f"counts must be RLE, got the text of a Python bytes object, {shown(counts)}; write "
            "counts.decode() instead of str(counts)",
        )
    raise Fault(
        key,
        f"counts must be RLE whose run lengths are >= 0 and sum up to the {pixels:,} pixels of the "
        f"image, got {shown(counts)}; recreate the mask",
    )


def _check_polygons(
    values: Sequence[list], sizes: np.ndarray, key: str, short_polygons: bool
) -> None:
    polygons, owners = _polygons(values, key, short_polygons)
    points = _array(_flat(polygons), np.float64, _NUMBERS)
    starts = _offsets(polygons)[:-1] // 2
    if polygons and (points is None or not near(points, starts, sizes[owners]).all()):
        height, width = sizes[0].tolist()
        raise Fault(
            key,
            f"coordinates must be finite numbers, at most one image size beyond the image of "
            f"{width} x {height} pixels, along an outline of at most {MAX_OUTLINE:,} pixels, got "
            f"{shown(polygons[0])}; recreate the mask",
        )


def _polygons(
    values: Sequence[list], key: str, short_polygons: bool
) -> tuple[list[list], np.ndarray]:
    """Return all polygons, without short ones, and (P,) int64, the index of the mask of each."""
    if not all(values):
        raise Fault(key, "is empty; it must be polygons or RLE")
    polygons = _flat(values)
    if not _are(polygons, (list,)):
        what = "a list of polygons [[x0, y0, x1, y1, x2, y2, ...], ...]"
        raise Fault(key, f"must be {what}, got {shown(values[0])}")
    owners = np.repeat(np.arange(len(values)), list(map(len, values)))
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    short = (lengths < 6) | (lengths % 2 == 1)
    if short.any():
        if not short_polygons:
            polygon = shown(polygons[int(np.argmax(short))])
            what = "an even number of at least 6 coordinates [x0, y0, x1, y1, x2, y2, ...]"
            raise Fault(key, f"polygons must have {what}, got {polygon}; remove the polygon")
        kept = np.flatnonzero(~short)
        polygons, owners = [polygons[i] for i in kept.tolist()], owners[kept]
    return polygons, owners


def coordinates(
    values: Sequence[list], key: str = "segmentation"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coordinates of polygons, which :func:`near` checks further.

    Args:
        values: N masks, each a list of polygons.
        key: their key.

    Returns:
        (B,) float64, all coordinates; (P,) int64, the number of coordinates of each polygon; and
        (N,) int64, the number of polygons of each mask.
    """
    polygons, _ = _polygons(values, key, short_polygons=False)
    points = _array(_flat(polygons), np.float64, _NUMBERS)
    if points is None:
        raise Fault(key, "coordinates must be numbers")
    lengths, numbers = (
        np.fromiter(map(len, lists), np.int64, len(lists)) for lists in (polygons, values)
    )
    return points, lengths, numbers


def near(points: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return which polygons lie near their image and have an outline of a sane length.

    Args:
        points: (B,) float64, the coordinates x, y of all polygons.
        starts: (P,) int64, the index of the first point of each.
        sizes: (P, 2) int64, height and width of the image of each.

    Returns:
        (P,) bool.
    """
    near = np.ones(len(starts), bool)
    for axis in (0, 1):
        values, sides = points[axis::2], sizes[:, 1 - axis]
        near &= np.minimum.reduceat(values, starts) >= -sides  # False for NaN
        near &= np.maximum.reduceat(values, starts) <= 2 * sides
    ends = np.append(starts[1:], len(points) // 2)
    long = near & ((ends - starts) * 3 * sizes.max(axis=1) > MAX_OUTLINE)
    for i in np.flatnonzero(long).tolist():
        corners = points.reshape(-1, 2)[starts[i] : ends[i]]
        steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
        near[i] = steps.sum() <= MAX_OUTLINE
    return near


def _equal(found: list, expected: list[list[int]]) -> bool:
    try:
        return found == expected or list(map(list, found)) == expected
    except (TypeError, ValueError, RuntimeError):  # tensors
        return False


def _are(values: Sequence, types: tuple[type, ...]) -> bool:
    return all(issubclass(t, types) and t is not bool for t in set(map(type, values)))


def _flat(values: Sequence[Sequence]) -> list:
    return list(chain.from_iterable(values))


def _array(values: Sequence, dtype: type, types: tuple[type, ...]) -> np.ndarray | None:
    """Return an array, or None if a value has another type or does not fit."""
    if not _are(values, types):
        return None
    try:
        return np.fromiter(values, dtype, len(values))
    except OverflowError:
        return None


def _whole(values: Sequence) -> Sequence:
    """Return floats as integers if all are whole."""
    if _are(values, _INTEGERS) or not _are(values, _NUMBERS):
        return values
    try:
        integers = [int(value) for value in values]
    except (OverflowError, ValueError):  # inf, NaN
        return values
    return integers if integers == list(values) else values


def _offsets(values: Sequence) -> np.ndarray:
    """Return (N + 1,) int64, the offset of each value in their concatenation."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=offsets[1:])
    return offsets
