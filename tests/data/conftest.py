"""Datasets shared by the tests of apa_det.data."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apa_det.data import generate_dataset

from ..conftest import require_path

_SMALL = {
    "images": [
        {
            "id": 7,
            "file_name": "b.png",
            "height": 20,
            "width": 30,
            "neg_category_ids": [90],
            "not_exhaustive_category_ids": [4],
        },
        {
            "id": 3,
            "file_name": "a.png",
            "height": 20,
            "width": 30,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        },
    ],
    "annotations": [
        {
            "id": 11,
            "image_id": 7,
            "category_id": 4,
            "bbox": [1, 2, 10, 5],
            "area": 50,
            "segmentation": [[1, 2, 11, 2, 11, 7, 1, 7]],
        },
        {
            "id": 12,
            "image_id": 7,
            "category_id": 21,
            "bbox": [0, 0, 30, 1],
            "area": 30,
            "segmentation": {"size": [20, 30], "counts": [0, *[1, 19] * 30]},
        },
        {
            "id": 13,
            "image_id": 3,
            "category_id": 4,
            "bbox": [1, 2, 10, 5],
            "area": 50,
            "segmentation": [[1, 2, 11, 2, 11, 7, 1, 7]],
        },
    ],
    "categories": [
        {"id": 90, "name": "cat"},
        {"id": 4, "name": "dog"},
        {"id": 21, "name": "fly"},
    ],
}


@pytest.fixture
def small():
    """A valid dataset in LVIS format: category ids with gaps and out of order, no counts."""
    return copy.deepcopy(_SMALL)


@pytest.fixture
def write(tmp_path):
    """Write a dataset and black images; returns the path of the JSON file."""

    def write_dataset(dataset) -> Path:
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps(dataset))
        for image in dataset["images"]:
            size = (image["height"], image["width"], 3)
            Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / image["file_name"])
        return path

    return write_dataset


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """The folder of a generated dataset with classes of all frequency groups."""
    folder = tmp_path_factory.mktemp("synthetic")
    generate_dataset(folder, num_train=240, num_val=40, num_classes=12, seed=3, image_size=96)
    return folder


@pytest.fixture(scope="session")
def tinycoco(real_data):
    return require_path(real_data / "tinycoco")


@pytest.fixture(scope="session")
def lvis_v1_categories(real_data):
    return json.loads(require_path(real_data / "lvis/lvis_v1_train_cat_info.json").read_text())
