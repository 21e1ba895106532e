"""Registration of V3Det, with files in its layout."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from apa_det.data.v3det import register_v3det
from apa_det.errors import MissingFileError, UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Register V3Det in a temporary folder; restore the registration afterwards."""
    before = {}
    for name in ("v3det_train", "v3det_val", "v3det_train_sam"):
        before[name] = DatasetCatalog[name], MetadataCatalog.pop(name)
        DatasetCatalog.remove(name)
    register_v3det(str(tmp_path))
    yield tmp_path
    for name, (load, metadata) in before.items():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            **{k: v for k, v in metadata.as_dict().items() if k != "name"}
        )


def write(root, text=None):
    image_file = root / "v3det/images/a1/1.jpg"
    image_file.parent.mkdir(parents=True)
    image_file.touch()
    dataset = {
        "images": [{"id": 5, "file_name": "images/a1/1.jpg", "height": 40, "width": 60}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 2,
                "bbox": [1, 2, 3, 4],
                "area": 12,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 1, "name": "alpha"}, {"id": 2, "name": "beta"}],
    }
    json_file = root / "v3det/annotations/v3det_2023_v1_val.json"
    json_file.parent.mkdir()
    json_file.write_text(text if text is not None else json.dumps(dataset))
    return image_file


def test_load(root):
    image_file = write(root)
    (record,) = DatasetCatalog.get("v3det_val")
    assert record["file_name"] == str(image_file) and record["image_id"] == 5
    assert record["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get("v3det_val")
    assert metadata.thing_classes == ["alpha", "beta"]
    assert metadata.evaluator_type == "v3det"


def test_registered_on_import():
    assert {"v3det_train", "v3det_val"} <= set(DatasetCatalog)


def test_missing_files(root):
    with pytest.raises(MissingFileError, match="v1_train.json, which does not exist. Download"):
        DatasetCatalog.get("v3det_train")
    write(root).unlink()
    with pytest.raises(MissingFileError, match="first image .* DETECTRON2_DATASETS"):
        DatasetCatalog.get("v3det_val")


def test_file_that_is_cut_off(root):
    write(root, '{"images": [')
    with pytest.raises(UserError, match="v3det_2023_v1_val.json is cut off or not JSON"):
        DatasetCatalog.get("v3det_val")
