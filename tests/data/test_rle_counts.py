"""The counts of compressed RLE, compared with a decoder in plain Python and with pycocotools."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.data import rle_counts
from apa_det.data.rle_counts import valid_counts


def encode(runs):
    """Encode run lengths of any sign, as pycocotools encodes those >= 0."""
    text = bytearray()
    for i, run in enumerate(runs):
        rest = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text.append(48 + bits + 32 * more)
    return bytes(text)


def decode(text):
    """Return the run lengths, or None for invalid text: pycocotools' rleFrString."""
    runs, at = [], 0
    while at < len(text):
        number, shift, more = 0, 0, True
        while more:
            if at == len(text) or not 48 <= text[at] < 112 or shift >= 35:
                return None
            bits = text[at] - 48
            more, at = bool(bits & 32), at + 1
            number |= (bits & 31) << shift
            shift += 5
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def is_valid(text, pixels):
    runs = decode(text)
    return bool(runs) and min(runs) >= 0 and sum(runs) == pixels and len(text) <= 2 * pixels + 16


def validate(texts, pixels):
    offsets = np.cumsum([0, *map(len, texts)])
    counts = np.frombuffer(b"".join(texts), np.uint8)
    return valid_counts(counts, offsets, np.array(pixels, np.int64)).tolist()


texts = st.one_of(
    st.binary(max_size=12),
    st.text("0123456789:;<=>?@ABNOPQabcmno", max_size=12).map(str.encode),
    st.lists(st.integers(-3, 40), max_size=9).map(encode),
    st.lists(st.integers(-(2**32), 2**32), max_size=4).map(encode),
    st.lists(st.integers(0, 2**20), min_size=1, max_size=30).map(encode),
)


@given(st.data(), st.lists(texts, min_size=1, max_size=8))
def test_equals_a_decoder_in_plain_python(data, masks):
    pixels = []
    for text in masks:
        total = sum(decode(text) or [3])
        right = 0 < total <= 2**31 and data.draw(st.booleans())
        pixels.append(total if right else data.draw(st.integers(1, 2**31)))
    expected = [is_valid(text, n) for text, n in zip(masks, pixels, strict=True)]
    assert validate(masks, pixels) == expected
    for block in (1, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rle_counts, "_BLOCK", block)
            assert validate(masks, pixels) == expected


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_masks_of_pycocotools_are_valid(height, width, seed, density):
    masks = np.random.default_rng(seed).random((height, width, 3)) < density
    rles = mask_util.encode(np.asfortranarray(masks, np.uint8))
    texts = [rle["counts"] for rle in rles]
    assert validate(texts, [height * width] * 3) == [True] * 3
    assert validate(texts, [height * width + 1] * 3) == [False] * 3


def test_limits_of_the_format():
    largest = encode([0, 2**31])
    assert validate([largest, encode([2**31])], [2**31] * 2) == [True, True]
    # No run is negative, and the sum is right modulo 2**64.
    runs = [2**31, *(run for i in range(2**16) for run in (i * 2**33, 2**32))]
    assert min(runs) >= 0 and sum(runs) == 2**64 + 2**31 and decode(encode(runs)) == runs
    assert validate([encode(runs)], [2**31]) == [False]
    assert validate([b"1" + b"0" * 100], [1]) == [False]  # longer than a mask of one pixel
    assert validate([], []) == []
