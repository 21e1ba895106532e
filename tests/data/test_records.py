"""The contract of values: many at once are checked as one by one."""

import resource
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.data import records
from apa_det.data.faults import Fault, column, convert, faults
from apa_det.errors import UserError
from apa_det.text import shown

SIZE = np.array([[20, 30]])
ODD = st.sampled_from(
    [None, True, "", "x", [], {}, [[]], float("nan"), float("inf"), 2**63, -(2**70), 10**400, b"a"]
)
NUMBER = st.integers(-100, 100) | st.floats(-100, 100) | ODD
RLE = mask_util.frPyObjects([[2, 2, 9, 2, 9, 9]], 20, 30)[0]
MASKS = st.one_of(
    st.lists(st.lists(st.integers(-25, 70) | ODD, max_size=8) | ODD, max_size=3),
    st.builds(
        lambda size, counts: {"size": size, "counts": counts},
        st.just([20, 30]) | st.lists(NUMBER, max_size=3) | ODD,
        st.sampled_from([RLE["counts"], RLE["counts"].decode(), "b'x'", [600], [100, 500]])
        | st.lists(NUMBER, max_size=3)
        | ODD,
    ),
    ODD,
)
CHECKS = {
    "integers": (lambda v: records.integers(v, "id"), NUMBER),
    "whole": (lambda v: records.integers(v, "id", low=0, whole_floats=True), NUMBER),
    "numbers": (lambda v: records.numbers(v, "score", "be finite", high=90), NUMBER),
    "boxes": (records.boxes, st.lists(NUMBER, min_size=3, max_size=5) | ODD),
    "id_lists": (lambda v: records.id_lists(v, "ids"), st.lists(NUMBER, max_size=2) | ODD),
    "image_sizes": (
        records.image_sizes,
        st.dictionaries(st.sampled_from(["height", "width"]), st.integers(0, 2**17) | ODD),
    ),
    "segmentations": (lambda v: records.segmentations(v, np.repeat(SIZE, len(v), 0)), MASKS),
    "short": (
        lambda v: records.segmentations(v, np.repeat(SIZE, len(v), 0), short_polygons=True),
        MASKS,
    ),
    "compressed_counts": (
        lambda v: records.compressed_counts(v, np.repeat(SIZE, len(v), 0)),
        MASKS,
    ),
}


@pytest.mark.parametrize("name", CHECKS)
@given(data=st.data(), block=st.sampled_from([2, 100]))
def test_many_values_are_checked_as_one_by_one(name, data, block):
    check, strategy = CHECKS[name]
    values = data.draw(st.lists(strategy, max_size=6))
    expected = []
    for i, value in enumerate(values):
        try:
            check([value])
        except Fault as fault:
            expected.append((i, str(fault)))
            assert "\n" not in str(fault) and len(str(fault)) < 500
    assert [(i, str(fault)) for i, fault in faults(values, [check], block)] == expected
    if expected:
        with pytest.raises(UserError) as error:
            convert(values, check, "x.json: record", 100)
        index, text = expected[0]
        assert str(error.value) == f"x.json: record {100 + index} (from 0): {text}."
    elif values:
        convert(values, check, "x.json: record")


@given(st.lists(st.lists(st.integers(-30, 60), min_size=6, max_size=6), min_size=1, max_size=4))
def test_masks_of_all_kinds_are_those_of_pycocotools(polygons):
    polygons = [[min(max(v, -20), 40) for v in polygon] for polygon in polygons]
    expected = mask_util.merge(mask_util.frPyObjects(polygons, 20, 30))
    ends = np.flatnonzero(np.diff(mask_util.decode(expected).ravel("F"), prepend=0, append=2))
    runs = {"size": (20, 30), "counts": np.diff([0, *ends.tolist()]).tolist()}
    text = {"size": [20, 30.0], "counts": expected["counts"].decode()}
    masks = [polygons, runs, text, expected]
    counts, offsets = records.compressed_counts(masks, np.repeat(SIZE, 4, 0))
    for i in range(4):
        assert counts[offsets[i] : offsets[i + 1]].tobytes() == expected["counts"]
    runs["size"] = [20, 30]
    assert records.to_rle(runs, 20, 30)["counts"] == expected["counts"]
    assert records.to_rle(polygons, 20, 30)["counts"] == expected["counts"]


@pytest.mark.parametrize(
    "value, text",
    [
        (10**400, "an integer of 1,329 bits"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        ("x" * 1000, f"'{'x' * 40}'..."),
        ([1] * 1000, "[1, 1, 1, 1, 1, 1, ...]"),
        (np.zeros(3), "an object of type ndarray"),
        ({"a": [object()]}, "{'a': [an object of type object]}"),
        (np.float64(0.5), "0.5"),
        (float("nan"), "nan"),
    ],
)
def test_shown(value, text):
    assert shown(value) == text


def test_missing_key():
    with pytest.raises(Fault, match="^a is missing; add it$") as fault:
        column([{"a": 1}, {}], "a", "add it")
    assert fault.value.key == "a"


BOMBS = """
import numpy as np
from apa_det.data import records
from apa_det.data.faults import Fault
far, back = [0, 0] * 3, [0, 0, 2**16, 2**15] * 10**4
for value in ([[1e9, *far]], [[10**400, *far]], [[1e300, *far]], [back],
              {"size": [2**15, 2**16], "counts": [2**62, 2**62]},
              {"size": [2**15, 2**16], "counts": "oooooo?" * 10**5},
              {"size": [2**15, 2**16], "counts": "o" * 10**6}):
    try:
        records.to_rle(value, 2**15, 2**16)
        raise SystemExit(f"accepted {value!r:.40}")
    except Fault:
        pass
"""


def test_invalid_masks_take_no_memory():
    """pycocotools would allocate many gigabytes for these."""
    memory = 3 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", BOMBS],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
