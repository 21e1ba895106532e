"""Compressed RLE masks: validation before pycocotools' C code reads them, and partial decoding.

COCO's compressed RLE is text. Each run length is one number, of 5 bits per character and the lowest
first: the character is chr(48 + bits), plus 32 if the number goes on. The fifth bit of its last
character is the sign. From the fourth run on, the number is the difference to the run length two
runs before. The runs alternate between background and mask, and cover the image column by column.
"""

import numpy as np

_BLOCK = 1 << 18  # characters to decode at a time, for the cache of the CPU
_MAX_CHARACTERS = 7  # of a number: 35 bits


def valid_counts(counts: np.ndarray, offsets: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return which masks decode to exactly the pixels of their images.

    The run lengths of a valid mask are >= 0 and sum up to ``pixels``. Its text is at most twice as
    long as its image has pixels, which bounds the memory that its decoding takes.

    Args:
        counts: (B,) uint8, the text of all masks.
        offsets: (N + 1,) int64; mask i is ``counts[offsets[i]:offsets[i + 1]]``.
        pixels: (N,) int64, height times width of each image.

    Returns:
        (N,) bool.
    """
    lengths = np.diff(offsets)
    valid = (lengths > 0) & (lengths <= 2 * pixels + 16)
    if not valid.all():  # blocks have neither empty nor overlong masks
        for row in np.flatnonzero(valid):
            valid[row] = _valid_block(counts[offsets[row] : offsets[row + 1]], _ZERO, pixels[[row]])
        return valid
    ends = np.searchsorted(offsets, np.arange(_BLOCK, counts.size + _BLOCK, _BLOCK))
    start = 0
    for end in np.unique(np.minimum(ends, len(pixels))).tolist():
        first, last = offsets[start], offsets[end]
        valid[start:end] = _valid_block(
            counts[first:last], offsets[start:end] - first, pixels[start:end]
        )
        start = end
    return valid


_ZERO = np.zeros(1, np.int64)


def _valid_block(text: np.ndarray, starts: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Check masks that start at ``starts`` of ``text``, none of them empty."""
    codes = text - np.uint8(48)  # wraps around below 48
    is_last = codes < 32  # of its number
    ends = np.append(starts[1:], len(text)) - 1
    valid = is_last[ends]
    if codes.max() > 63:
        valid &= np.maximum.reduceat(codes, starts) <= 63
    is_last[ends] = True  # so that numbers do not cross masks
    numbers, first, too_long = _decode(codes, is_last, starts)
    if len(too_long):
        valid[np.searchsorted(first, too_long, side="right") - 1] = False
    _check_runs(numbers, first, pixels, valid)
    return valid


def _decode(
    codes: np.ndarray, is_last: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of all masks, int64, and the indices of each mask's first number and of
    the numbers with more characters than any run length needs."""
    bits = codes & np.uint8(31)
    signed = (bits ^ np.uint8(16)).view(np.int8) - np.int8(16)
    numbers = signed[is_last].astype(np.int64)
    others = np.flatnonzero(~is_last)
    ranks = np.flatnonzero(is_last[others + 1])  # of the last but one characters
    positions = others[ranks]
    rows = positions - ranks
    values = numbers[rows]
    for _ in range(_MAX_CHARACTERS - 1):
        if not len(rows):
            break
        values = (values << 5) + bits[positions]
        numbers[rows] = values
        longer = (positions > 0) & ~is_last[positions - 1]
        rows, values, positions = rows[longer], values[longer], positions[longer] - 1
    return numbers, starts - np.searchsorted(others, starts), rows


def _check_runs(
    numbers: np.ndarray, first: np.ndarray, pixels: np.ndarray, valid: np.ndarray
) -> None:
    """Clear ``valid`` of the masks with a run < 0 or a sum of runs other than ``pixels``.

    ``numbers`` is overwritten.
    """
    # The third number is no difference: make it one, so that cumulative sums give all runs.
    third = first[np.diff(first, append=len(numbers)) > 2] + 2
    numbers[third] -= numbers[third - 2]
    totals = np.zeros(len(first), np.int64)
    for parity, begin in ((0, (first + 1) // 2), (1, first // 2)):
        chain = numbers[parity::2]
        lengths = np.diff(begin, append=len(chain))
        rows = np.flatnonzero(lengths)  # a mask with one run has no number of the other parity
        if not len(rows):
            continue
        begin, lengths = begin[rows], lengths[rows]
        sums = np.zeros(len(chain) + 1, np.int64)
        np.cumsum(chain, out=sums[1:])
        before, sums = sums[begin], sums[1:]
        valid[rows] &= np.minimum.reduceat(sums, begin) >= before
        valid[rows] &= np.maximum.reduceat(sums, begin) <= before + pixels[rows]
        totals[rows] += np.add.reduceat(sums, begin) - before * lengths
    valid &= totals == pixels


def decode_columns(counts: bytes, height: int, x: int, width: int) -> np.ndarray:
    """Decode the columns x to x + width of a valid mask; pycocotools decodes whole images.

    Args:
        counts: its text.
        height: of its image.

    Returns:
        (height, width) bool.
    """
    codes = np.frombuffer(counts, np.uint8) - np.uint8(48)
    runs, _, _ = _decode(codes, codes < 32, _ZERO)
    if len(runs) > 2:
        runs[2] -= runs[0]  # as in _check_runs
    for parity in (0, 1):
        np.cumsum(runs[parity::2], out=runs[parity::2])
    ends = np.clip(runs.cumsum(), x * height, (x + width) * height)
    lengths = np.diff(ends, prepend=x * height)
    is_mask = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_mask, lengths).reshape(width, height).T
