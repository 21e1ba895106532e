"""Names, frequency groups and score thresholds of classes."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from apa_det.data import register_lvis_format
from apa_det.demo import ClassInfo, class_info, class_thresholds
from apa_det.errors import UserError
from apa_det.evaluation import FrequencyGroups

CATEGORIES = [
    {"id": 7, "name": "owl", "image_count": 3, "instance_count": 3, "frequency": "r"},
    {"id": 9, "name": "cat", "image_count": 50, "instance_count": 60, "frequency": "c"},
    {"id": 20, "name": "man", "image_count": 900, "instance_count": 999, "frequency": "f"},
]


@pytest.fixture
def register(tmp_path):
    """Register an LVIS-format dataset with these categories and no images."""
    names = []

    def make(name, categories=CATEGORIES, **thresholds):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        register_lvis_format(name, path, tmp_path, **thresholds)
        names.append(name)
        return path

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def groups_of(classes):
    return [classes.groups.names[i] if i >= 0 else None for i in classes.group_indices]


def test_from_the_file(register):
    register("classes_a")
    classes = class_info(["classes_a"], 3)
    assert classes.names == ("owl", "cat", "man")
    assert classes.category_ids.tolist() == [7, 9, 20]
    assert groups_of(classes) == ["r", "c", "f"]


def test_custom_groups_and_counts(register):
    counts = [{**c, "image_count": n} for c, n in zip(CATEGORIES, (5, 2, 7), strict=True)]
    register("classes_a")
    register("classes_counts", counts)
    few = FrequencyGroups.parse("few:4,many")
    assert groups_of(class_info(["classes_a"], 3, few)) == ["few", "many", "many"]
    assert groups_of(class_info(["classes_a"], 3, few, "classes_counts")) == ["many", "few", "many"]
    mine = FrequencyGroups.from_mapping({"man": "x", "7": "y"})
    assert groups_of(class_info(["classes_a"], 3, mine)) == ["y", None, "x"]


def test_thresholds_of_the_dataset(register):
    bare = [{k: v for k, v in c.items() if k != "frequency"} for c in CATEGORIES]
    register("classes_bare", bare, rare_max=60, common_max=70)
    assert groups_of(class_info(["classes_bare"], 3)) == ["r", "r", "f"]


def test_lvis_needs_no_file():
    classes = class_info(["lvis_v1_val"], 1203)
    assert len(classes) == 1203 and classes.category_ids[0] == 1
    assert np.bincount(classes.group_indices).tolist() == [337, 461, 405]  # as in LVIS v1


def test_coco_has_no_groups(caplog):
    classes = class_info(["coco_2017_val"], 80)
    assert classes.names[0] == "person" and classes.category_ids[-1] == 90
    assert set(groups_of(classes)) == {None}
    assert "coco_2017_val has no image counts" in caplog.text


def test_next_dataset_or_numbers(register, caplog):
    path = register("classes_a")
    register("classes_b")
    path.unlink()
    assert class_info(["classes_a", "classes_b"], 3).names == ("owl", "cat", "man")
    assert str(path) in caplog.text
    classes = class_info(["classes_a", "unregistered"], 2)
    assert classes.names == ("0", "1") and groups_of(classes) == [None, None]
    assert "unregistered" in caplog.text and "shown as indices" in caplog.text


def test_other_classes(register):
    register("classes_a")
    register("classes_two", CATEGORIES[:2])
    with pytest.raises(UserError, match="classes_two has 2 classes, but the model has 3"):
        class_info(["classes_two", "classes_a"], 3)
    with pytest.raises(UserError, match="COUNT_FROM classes_two lacks the classes .man"):
        class_info(["classes_a"], 3, None, "classes_two")


def classes_in(indices, groups=None):
    names = tuple(map(str, range(len(indices))))
    ids = np.arange(len(indices))
    return ClassInfo(names, ids, groups or FrequencyGroups.lvis(), np.array(indices))


@given(
    scores=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    indices=st.lists(st.integers(-1, 2), min_size=1, max_size=9),
)
def test_thresholds_by_group(scores, indices):
    text = "r:{},c: {}, f:{},{}".format(*scores)
    thresholds = class_thresholds(text, classes_in(indices))
    assert thresholds.tolist() == [scores[i] for i in indices]
    assert class_thresholds(str(scores[0]), classes_in(indices)).tolist() == scores[:1] * len(
        indices
    )


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "r:0.1,c:0.2",
            "omits the group f. Add a number without a group .* e.g. r:0.1,c:0.2,0.5",
        ),
        ("r:0.1,c:0.2,f:0.3", "omits classes of unknown group"),
        ("x:0.1,0.2", "'x' in the confidence threshold .*; the groups are r, c, f"),
        *(
            (t, "Invalid confidence threshold")
            for t in ("", "a", "1.1", "nan", "-1", "r:", "0.1,0.2")
        ),
    ],
)
def test_threshold_errors(text, message):
    with pytest.raises(UserError, match=message):
        class_thresholds(text, classes_in([-1] if "f:" in text else [0, 1, 2]))
