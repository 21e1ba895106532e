"""Counts of categories and frequency groups."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.data import complete_categories, frequency_group
from apa_det.data.frequency import FrequencyGroups
from apa_det.errors import MissingFileError, UserError

CATEGORIES = [
    {"id": 3, "name": "cat", "image_count": 10, "frequency": "f"},
    {"id": 5, "name": "dog", "image_count": 11},
    {"id": 9, "name": "owl", "image_count": 101},
]


def names(groups):
    return [groups.names[i] if i >= 0 else None for i in groups.assign(CATEGORIES)]


@pytest.mark.parametrize(
    "image_count, group",
    [(0, "r"), (1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f"), (99_388, "f")],
)
def test_lvis_thresholds(image_count, group):
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


def test_existing_values_are_kept(small):
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
def test_counts_of_any_annotations(pairs, thresholds):
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
def test_invalid_thresholds(thresholds, small):
    with pytest.raises(UserError, match="rare_max must be >= 0 and <= common_max, got rare_max"):
        complete_categories(small, *thresholds)


def test_lvis_groups():
    assert names(FrequencyGroups.lvis()) == ["f", "c", "f"]  # the file's frequency comes first
    assert names(FrequencyGroups.lvis(11, 200)) == ["f", "r", "c"]
    assert FrequencyGroups.lvis().labels == ("rare", "common", "frequent")


def test_groups_from_thresholds():
    groups = FrequencyGroups.from_thresholds([("few", 10), ("many", None)])
    assert names(groups) == ["few", "many", "many"]
    four = FrequencyGroups.parse("a:9, b:10,c:11,d")
    assert names(four) == ["b", "c", "d"] and four.labels == ("a", "b", "c", "d")


def test_groups_from_mapping(tmp_path):
    groups = FrequencyGroups.from_mapping({"owl": "tail", 3: "head"})
    assert groups.names == ("tail", "head")
    assert names(groups) == ["head", None, "tail"]
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"owl": "tail", "3": "head"}))
    assert names(FrequencyGroups.parse(str(path))) == ["head", None, "tail"]
    with pytest.raises(UserError, match="category 'eel', which is not in the dataset"):
        FrequencyGroups.from_mapping({"eel": "tail"}).assign(CATEGORIES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("r:10,c:100", "and the last must not have one"),
        ("r:100,c:10,f", "must not decrease, got 100, 10"),
        ("r:ten,c:100,f", "Invalid frequency groups 'r:ten,c:100,f'; expected e.g. r:10"),
        ("s:10,f", "not 50, 75, s, m or l; got 's'"),
        ("r:1,r:2,f", "must be unique.*got 'r'"),
        ("", "not empty"),
    ],
)
def test_invalid_groups(text, message):
    with pytest.raises(UserError, match=message):
        FrequencyGroups.parse(text)


def test_invalid_groups_file(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text('["cat"]')
    with pytest.raises(UserError, match="must be a JSON object"):
        FrequencyGroups.parse(str(path))
    with pytest.raises(MissingFileError):
        FrequencyGroups.parse(str(tmp_path / "none.json"))
