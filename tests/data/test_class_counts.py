"""Class counts and scarce classes from the metadata of datasets: hand-worked cases."""

import pytest
import torch
from detectron2.data import MetadataCatalog

from apa_det.data.class_counts import (
    check_num_classes,
    class_counts,
    class_names,
    get_scarce_classes,
)
from apa_det.errors import UserError


def set_counts(name, counts, **metadata):
    MetadataCatalog.get(name).set(
        class_image_count=[{"id": i, "image_count": c} for i, c in counts], **metadata
    )


def test_counts():
    """Sums over datasets, in the order of the ids; instance counts where known."""
    MetadataCatalog.get("counts_a").set(
        class_image_count=[
            {"id": 2, "image_count": 5, "instance_count": 9},
            {"id": 1, "image_count": 0, "instance_count": 0},
        ]
    )
    set_counts("counts_b", [(1, 3), (2, 1)])
    assert class_counts(["counts_a", "counts_b"]).tolist() == [3, 6]
    assert class_counts(["counts_a"], "instance_count").tolist() == [0, 9]
    with pytest.raises(UserError, match="counts_b does not give the instance count"):
        class_counts(["counts_a", "counts_b"], "instance_count")


def test_invalid_counts():
    for count in (-1, 2.5, "3", None, True, 2**60):
        set_counts(f"counts_{count}", [(1, count)])
        with pytest.raises(UserError, match=f"counts_{count}: image_count must be an integer >= 0"):
            class_counts([f"counts_{count}"])


def test_scarce_classes():
    set_counts("losses_a", [(2, 110), (1, 109), (3, 5000)], num_images=100_000)
    set_counts("losses_b", [(1, 2), (2, 0), (3, 0)], num_images=1_000)
    assert get_scarce_classes(["losses_a"], 0.0011).tolist() == [True, False, False]
    assert get_scarce_classes(["losses_a"], 0.05).tolist() == [True, True, False]
    both = get_scarce_classes(["losses_a", "losses_b"], 111 / 101_000)
    assert both.tolist() == [False, True, False]


def test_scarce_classes_of_lvis(lvis_v1_categories):
    """109 images or fewer: all rare and common classes, and a few frequent ones."""
    categories = sorted(lvis_v1_categories, key=lambda c: c["id"])
    scarce = get_scarce_classes(("lvis_v1_train",))
    assert scarce.tolist() == [c["image_count"] <= 109 for c in categories]
    frequencies = [c["frequency"] for c, s in zip(categories, scarce, strict=True) if s]
    assert [frequencies.count(f) for f in "rcf"] == [337, 461, 17]


def test_invalid_kind():
    with pytest.raises(UserError, match="CLASS_COUNT must be one of image_count, instance_count"):
        class_counts(["lvis_v1_train"], "images")


def test_scarce_classes_errors():
    with pytest.raises(UserError, match="coco_2017_train does not give.*LVIS_FORMAT"):
        get_scarce_classes(["coco_2017_train"])
    set_counts("losses_no_total", [(1, 2)])
    with pytest.raises(UserError, match="losses_no_total does not give .*num_images"):
        get_scarce_classes(["losses_no_total"])
    set_counts("losses_c", [(1, 2)], num_images=10)
    with pytest.raises(UserError, match="different classes"):
        get_scarce_classes(["lvis_v1_train", "losses_c"])


def test_class_names():
    assert class_names(["coco_2017_train"])[:2] == ["person", "bicycle"]
    with pytest.raises(UserError, match="losses_unread does not give the names"):
        class_names(["losses_unread"])
    for function in (class_counts, class_names, get_scarce_classes):
        with pytest.raises(UserError, match="need a training dataset: name one in DATASETS.TRAIN"):
            function([])


def test_check_num_classes():
    values = torch.ones(3)
    assert check_num_classes(values, 3, "The loss") is values
    with pytest.raises(UserError, match="The loss got .* of 3 classes .* predictor of 4"):
        check_num_classes(values, 4, "The loss")
