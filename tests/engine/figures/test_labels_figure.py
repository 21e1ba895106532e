import json
import time

import numpy as np
import pytest
from detectron2.structures import BoxMode

from apa_det.data import get_dataset_records, register_lvis_format
from apa_det.data.class_thresholds import ClassInfo
from apa_det.data.frequency import FrequencyGroups
from apa_det.engine.figures.labels_figure import TrainingLabels, draw_labels, read_labels
from apa_det.errors import UserError
from apa_det.utils.plotting import GREY, group_color


def drawn(labels):
    figure = draw_labels(labels)
    figure.canvas.draw()
    for axis in figure.axes:
        assert axis.get_xlabel() and axis.get_ylabel()
    return figure.axes


@pytest.fixture
def registered(tiny_dataset, forget_datasets):
    register_lvis_format("labels_train", f"{tiny_dataset}/train.json", tiny_dataset)
    return "labels_train"


def test_labels_of_a_dataset(tiny_dataset, registered):
    content = json.loads((tiny_dataset / "train.json").read_text())
    records = get_dataset_records([registered])
    labels = read_labels(records, [registered])
    annotations, sizes = content["annotations"], {i["id"]: i for i in content["images"]}
    for k, category in enumerate(sorted(content["categories"], key=lambda c: c["id"])):
        own = [a for a in annotations if a["category_id"] == category["id"]]
        assert labels.instance_counts[k] == len(own)
        assert labels.image_counts[k] == len({a["image_id"] for a in own})
        assert labels.info.names[k] == category["name"]
        letter = labels.info.groups.names[labels.info.group_indices[k]]
        assert letter == category["frequency"]
    shares = [
        a["bbox"][2] * a["bbox"][3] / (sizes[a["image_id"]]["width"] ** 2) for a in annotations
    ]
    assert sorted(labels.relative_sizes) == pytest.approx(sorted(np.sqrt(shares)))

    as_list = read_labels(list(records), [registered])
    for name in ("image_counts", "instance_counts", "classes", "relative_sizes"):
        assert np.array_equal(getattr(as_list, name), getattr(labels, name))
    drawn(labels)


def test_boxes_of_other_modes():
    boxes = {BoxMode.XYWH_ABS: [10, 10, 30, 20], BoxMode.XYXY_ABS: [10, 10, 40, 30]}
    boxes[BoxMode.XYWHA_ABS] = [25, 20, 30, 20, 45]
    annotations = [{"category_id": 1, "bbox": b, "bbox_mode": m} for m, b in boxes.items()]
    annotations.append({"category_id": 0, "bbox": [0, 0, 9, 9], "bbox_mode": 1, "iscrowd": 1})
    labels = read_labels([{"height": 50, "width": 60, "annotations": annotations}, {}], [])
    assert labels.relative_sizes == pytest.approx([(600 / 3000) ** 0.5] * 3)
    assert labels.classes.tolist() == [1, 1, 1] and labels.image_counts.tolist() == [0, 1]
    counts, _ = drawn(labels)
    assert "1 without images" in counts.get_legend().get_texts()[0].get_text()


def test_custom_groups(registered):
    records = get_dataset_records([registered])
    labels = read_labels(records, [registered], FrequencyGroups.parse("few:4,many"))
    expected = (labels.image_counts > 4).astype(int)
    assert labels.info.group_indices.tolist() == expected.tolist()
    with pytest.raises(UserError, match="category 'nothing'"):
        read_labels(records, [registered], FrequencyGroups.from_mapping({"nothing": "few"}))


@pytest.mark.parametrize(("number", "seconds"), [(1, 20), (45, 20), (1203, 20), (13204, 20)])
def test_many_classes(number, seconds):
    images = (5000 / np.arange(1, number + 1) ** 0.9).astype(int)
    groups = FrequencyGroups.lvis()
    indices = np.searchsorted([10, 100], images)
    indices[::7] = -1
    names = tuple(f"$class_{i}" for i in range(number))
    classes = np.repeat(np.arange(number), images)
    sizes = np.random.default_rng(0).beta(1, 6, len(classes))
    info = ClassInfo(names, np.arange(number), groups, indices)
    start = time.process_time()
    counts, _ = drawn(TrainingLabels(9, images, 2 * images, classes, sizes, info))
    assert time.process_time() - start < seconds
    assert counts.get_yscale() == "log"
    colors = [handle.get_facecolor() for handle in counts.get_legend().get_patches()]
    assert len(colors) == len({*indices.tolist()}) and len({*colors}) == len(colors)
    assert GREY != group_color(0)


def test_no_annotations():
    labels = read_labels([{"height": 5, "width": 5, "annotations": []}], [])
    drawn(labels)
