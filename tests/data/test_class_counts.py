"""Class counts and scarce classes by the datasets' metadata, against hand-worked cases."""

import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from apa_det.data.class_counts import class_counts, class_names, get_scarce_classes

SHARED = Path(__file__).parents[3] / "shared" / "data"


def set_counts(name, counts, **metadata):
    MetadataCatalog.get(name).set(
        class_image_count=[{"id": i, "image_count": c} for i, c in counts], **metadata
    )


def test_counts():
    """Of several datasets, in the order of the ids; instances where they are known."""
    MetadataCatalog.get("counts_a").set(
        class_image_count=[
            {"id": 2, "image_count": 5, "instance_count": 9},
            {"id": 1, "image_count": 0, "instance_count": 0},
        ]
    )
    set_counts("counts_b", [(1, 3), (2, 1)])
    assert class_counts(["counts_a", "counts_b"]).tolist() == [3, 6]
    assert class_counts(["counts_a"], "instance_count").tolist() == [0, 9]
    with pytest.raises(ValueError, match="counts_b does not give the instance count"):
        class_counts(["counts_a", "counts_b"], "instance_count")


def test_scarce_classes():
    set_counts("losses_a", [(2, 110), (1, 109), (3, 5000)], num_images=100_000)
    set_counts("losses_b", [(1, 2), (2, 0), (3, 0)], num_images=1_000)
    assert get_scarce_classes(["losses_a"], 0.0011).tolist() == [True, False, False]
    assert get_scarce_classes(["losses_a"], 0.05).tolist() == [True, True, False]
    both = get_scarce_classes(["losses_a", "losses_b"], 111 / 101_000)
    assert both.tolist() == [False, True, False]


def test_scarce_classes_of_lvis():
    """109 pictures or fewer: all rare and common classes, and a few frequent ones."""
    file = SHARED / "lvis" / "lvis_v1_train_cat_info.json"
    if not file.is_file():
        pytest.skip(f"needs {file}")
    categories = sorted(json.loads(file.read_text()), key=lambda c: c["id"])
    scarce = get_scarce_classes(("lvis_v1_train",))
    assert scarce.tolist() == [c["image_count"] <= 109 for c in categories]
    frequencies = [c["frequency"] for c, s in zip(categories, scarce, strict=True) if s]
    assert [frequencies.count(f) for f in "rcf"] == [337, 461, 17]


def test_scarce_classes_errors():
    with pytest.raises(ValueError, match="coco_2017_train does not give.*LVIS_FORMAT"):
        get_scarce_classes(["coco_2017_train"])
    set_counts("losses_no_total", [(1, 2)])
    with pytest.raises(ValueError, match="losses_no_total does not give .*num_images"):
        get_scarce_classes(["losses_no_total"])
    set_counts("losses_c", [(1, 2)], num_images=10)
    with pytest.raises(ValueError, match="different classes"):
        get_scarce_classes(["lvis_v1_train", "losses_c"])


def test_class_names():
    assert class_names(["coco_2017_train"])[:2] == ["person", "bicycle"]
    with pytest.raises(ValueError, match="losses_unread does not give the names"):
        class_names(["losses_unread"])
    for function in (class_counts, class_names, get_scarce_classes):
        with pytest.raises(ValueError, match="need a training dataset: name one in DATASETS.TRAIN"):
            function([])
