"""pycocotools rasterizes the polygons to the original mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as mask_utils

from apa_det.data.synthetic.polygons import mask_to_polygons


def rasterize(polygons, height, width):
    rle = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    return mask_utils.decode(rle).astype(bool)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=16), elements=st.booleans()))
def test_round_trip(mask):
    polygons = mask_to_polygons(mask)
    assert bool(polygons) == mask.any()
    if polygons:
        np.testing.assert_array_equal(rasterize(polygons, *mask.shape), mask)


def test_rectangle_has_four_corners():
    mask = np.zeros((9, 9), bool)
    mask[2:5, 1:8] = True
    assert mask_to_polygons(mask) == [[1, 2, 8, 2, 8, 5, 1, 5]]


def test_pixels_touching_at_a_corner_are_two_polygons():
    assert sorted(mask_to_polygons(np.eye(2, dtype=bool))) == [
        [0, 0, 1, 0, 1, 1, 0, 1],
        [1, 1, 2, 1, 2, 2, 1, 2],
    ]


@pytest.mark.parametrize("holes", [[(4, 4)], [(2, 2), (6, 6)], [(1, 1), (1, 3), (1, 5), (7, 3)]])
def test_union_of_polygons_has_the_holes(holes):
    mask = np.ones((9, 9), bool)
    mask[tuple(np.transpose(holes))] = False
    polygons = mask_to_polygons(mask)
    assert len(polygons) > 1
    union = np.any([rasterize([polygon], 9, 9) for polygon in polygons], axis=0)
    np.testing.assert_array_equal(union, mask)
