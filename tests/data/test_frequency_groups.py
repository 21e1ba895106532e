import json

import pytest

from apa_det.evaluation import FrequencyGroups

CATEGORIES = [
    {"id": 3, "name": "cat", "image_count": 10, "frequency": "f"},
    {"id": 5, "name": "dog", "image_count": 11},
    {"id": 9, "name": "owl", "image_count": 101},
]


def names(groups):
    places = groups.assign(CATEGORIES)
    return [groups.names[place] if place >= 0 else None for place in places]


def test_lvis():
    assert names(FrequencyGroups.lvis()) == ["f", "c", "f"]  # what the file says goes first
    assert names(FrequencyGroups.lvis(11, 200)) == ["f", "r", "c"]
    assert FrequencyGroups.lvis().labels == ("rare", "common", "frequent")


def test_thresholds():
    assert names(FrequencyGroups.from_thresholds([("few", 10), ("many", None)])) == [
        "few",
        "many",
        "many",
    ]
    four = FrequencyGroups.parse("a:9, b:10,c:11,d")
    assert names(four) == ["b", "c", "d"] and four.labels == ("a", "b", "c", "d")


def test_mapping(tmp_path):
    groups = FrequencyGroups.from_mapping({"owl": "tail", 3: "head"})
    assert groups.names == ("tail", "head")
    assert names(groups) == ["head", None, "tail"]
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"owl": "tail", "3": "head"}))
    assert names(FrequencyGroups.parse(str(path))) == ["head", None, "tail"]
    with pytest.raises(ValueError, match="category 'eel', which the dataset lacks"):
        FrequencyGroups.from_mapping({"eel": "tail"}).assign(CATEGORIES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("r:10,c:100", "the last takes the rest"),
        ("r:100,c:10,f", "must not fall"),
        ("r:ten,c:100,f", "are no frequency groups"),
        ("s:10,f", "not 's'"),
        ("r:1,r:2,f", "not 'r'"),
        ("", "name of its own"),
    ],
)
def test_bad_groups(text, message):
    with pytest.raises(ValueError, match=message):
        FrequencyGroups.parse(text)


def test_bad_file(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text('["cat"]')
    with pytest.raises(ValueError, match="must be a JSON object"):
        FrequencyGroups.parse(str(path))
    with pytest.raises(FileNotFoundError):
        FrequencyGroups.parse(str(tmp_path / "none.json"))
