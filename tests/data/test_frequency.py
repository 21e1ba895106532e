"""Counts and frequency groups: by hand, by LVIS's own, and over wide ranges."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.data import complete_categories, frequency_group


@pytest.mark.parametrize(
    "image_count, group",
    [(0, "r"), (1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f"), (99_388, "f")],
)
def test_groups_of_lvis(image_count, group):
    assert frequency_group(image_count) == group


def test_real_lvis_frequencies_follow_from_their_counts(lvis_v1_categories):
    bare = [{"id": c["id"], "image_count": c["image_count"]} for c in lvis_v1_categories]
    dataset = {"annotations": [], "categories": bare}
    complete_categories(dataset)
    derived = [category["frequency"] for category in dataset["categories"]]
    assert derived == [category["frequency"] for category in lvis_v1_categories]
    assert Counter(derived) == {"r": 337, "c": 461, "f": 405}


def test_counts_by_hand(small):
    small["annotations"].append(small["annotations"][0] | {"id": 14})  # a second dog in image 7
    complete_categories(small, rare_max=0, common_max=1)
    assert small["categories"] == [
        {"id": 90, "name": "cat", "image_count": 0, "instance_count": 0, "frequency": "r"},
        {"id": 4, "name": "dog", "image_count": 2, "instance_count": 3, "frequency": "f"},
        {"id": 21, "name": "fly", "image_count": 1, "instance_count": 1, "frequency": "c"},
    ]


def test_what_the_file_says_stays(small):
    small["categories"][0] |= {"image_count": 50, "instance_count": 60}
    small["categories"][1] |= {"frequency": "c"}
    complete_categories(small)
    cat, dog, _ = small["categories"]
    assert (cat["image_count"], cat["instance_count"], cat["frequency"]) == (50, 60, "c")
    assert (dog["image_count"], dog["instance_count"], dog["frequency"]) == (2, 2, "c")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30))),
    st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted),
)
def test_counts_any_annotations(pairs, thresholds):
    dataset = {
        "annotations": [{"category_id": c, "image_id": i} for c, i in pairs],
        "categories": [{"id": c} for c in range(6)],
    }
    complete_categories(dataset, *thresholds)
    rare_max, common_max = thresholds
    for category in dataset["categories"]:
        images = {i for c, i in pairs if c == category["id"]}
        assert category["image_count"] == len(images)
        assert category["instance_count"] == sum(c == category["id"] for c, _ in pairs)
        in_group = {
            "r": len(images) <= rare_max,
            "c": rare_max < len(images) <= common_max,
            "f": len(images) > common_max,
        }
        assert in_group[category["frequency"]]


@pytest.mark.parametrize("thresholds", [(-1, 100), (11, 10)])
def test_thresholds_out_of_order(thresholds, small):
    with pytest.raises(ValueError, match="rare_max must be at least 0 and at most common_max"):
        complete_categories(small, *thresholds)
