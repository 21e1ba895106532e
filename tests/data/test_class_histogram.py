"""The log of instances by class stays short for many classes."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from apa_det.data import register_lvis_format
from apa_det.data.catalog import get_dataset_records
from apa_det.data.class_histogram import extremes_table
from apa_det.errors import UserError


def write(folder, num_classes, counts):
    """Write a dataset of one image, with a number of instances of the first classes."""
    Image.new("RGB", (50, 50)).save(folder / "1.jpg")
    box = {"bbox": [0, 0, 10, 10], "area": 100, "segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": 0}
    classes = np.repeat(np.arange(len(counts)) + 1, counts).tolist()
    image = {"id": 1, "height": 50, "width": 50, "file_name": "1.jpg"}
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    groups = "r" * 40 + "c" * 30 + "f" * num_classes
    counted = {"image_count": 1, "instance_count": 1}
    dataset = {
        "images": [image | lists],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, **box} for i, c in enumerate(classes, 1)
        ],
        "categories": [
            {"id": i, "name": f"class {i}", "frequency": groups[i - 1], **counted}
            for i in range(1, num_classes + 1)
        ],
    }
    path = folder / f"{num_classes}.json"
    path.write_text(json.dumps(dataset))
    return str(path)


@pytest.fixture
def logged(tmp_path, caplog):
    """Return the log of reading a dataset twice, registered for LVIS format or by detectron2."""
    names = []

    def run(kind, num_classes, counts):
        name = f"histogram {kind} {num_classes} {tmp_path}"
        names.append(name)
        path = write(tmp_path, num_classes, counts)
        if kind == "lvis":
            register_lvis_format(name, path, str(tmp_path))
        else:
            register_coco_instances(name, {}, path, str(tmp_path))
        caplog.clear()
        caplog.set_level(logging.INFO)
        for _ in range(2):
            get_dataset_records(name)
        return [m for m in caplog.messages if "instances of" in m and "Loaded" not in m]

    yield run
    for name in names:
        DatasetCatalog.remove(name), MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["lvis", "coco"])
def test_many_classes(logged, kind):
    (text,) = logged(kind, 120, [7] * 5 + [1] * 50 + [3] * 20)
    first, *table = text.splitlines()
    assert "145 instances of 120 classes in histogram" in first
    assert (
        "70 of 40 rare, 60 of 30 common, 15 of 50 frequent classes; 45 classes have none" in first
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert rows[0] == ["10 largest", "#instances", "10 smallest", "#instances"]
    assert len(rows) == 12 and rows[2] == ["class 1", "7", "class 55", "1"]
    assert rows[7] == ["class 56", "3", "class 50", "1"]


@pytest.mark.parametrize("kind", ["lvis", "coco"])
def test_few_classes(logged, caplog, kind):
    """detectron2's own table."""
    assert logged(kind, 100, [2, 1]) == []
    tables = [m for m in caplog.messages if "Distribution of instances among all 100" in m]
    assert len(tables) == 1 or kind == "coco"  # detectron2 logs equal tables once per process


def test_invalid_class(caplog):
    name = "histogram of own dicts"
    annotation = {"category_id": 200, "iscrowd": 0}
    DatasetCatalog.register(name, lambda: [{"annotations": [annotation]}])
    MetadataCatalog.get(name).thing_classes = [str(i) for i in range(150)]
    try:
        with pytest.raises(
            UserError, match=r"must be from 0 to 149, .* 150 thing_classes; got 200"
        ):
            get_dataset_records(name)
        annotation["category_id"] = 3
        caplog.set_level(logging.INFO)
        get_dataset_records(name)
        assert "1 instances of 150 classes in histogram of own dicts; 149 classes" in caplog.text
    finally:
        DatasetCatalog.remove(name), MetadataCatalog.remove(name)


def test_extremes_without_nan():
    values = np.array([np.nan, 3.0, 1.0, 2.0])
    header, _, *rows = extremes_table("abcd", values, "AP", "{:.1f}").replace(" ", "").splitlines()
    assert header == "|3largest|AP|3smallest|AP|"
    assert rows == ["|b|3.0|c|1.0|", "|d|2.0|d|2.0|", "|c|1.0|b|3.0|"]
