"""Registration and loading, compared with detectron2's loader and used in its pipeline."""

import os

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from apa_det.data import (
    ensure_metadata,
    generate_dataset,
    load_lvis_format,
    register_lvis_format,
    require_dataset_files,
)
from apa_det.errors import MissingFileError, UserError
from apa_det.utils.json_files import read_json, write_json


@pytest.fixture
def register():
    """register_lvis_format; the registrations are removed after the test."""
    names = []

    def do(name, *args, **kwargs):
        names.append(name)
        register_lvis_format(name, *args, **kwargs)

    yield do
    for name in set(names) & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_dataset_dicts_by_hand(small, write, register):
    path = write(small)
    register("hand", path, path.parent)
    first, second = DatasetCatalog.get("hand")  # by ascending id
    assert first == {
        "file_name": str(path.parent / "a.png"),
        "image_id": 3,
        "height": 20,
        "width": 30,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "annotations": [
            {
                "bbox": [1, 2, 10, 5],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": [[1, 2, 11, 2, 11, 7, 1, 7]],
            }
        ],
    }
    assert second["image_id"] == 7
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([90], [4])
    assert [a["category_id"] for a in second["annotations"]] == [0, 1]
    mask = mask_utils.decode(second["annotations"][1]["segmentation"])  # now compressed
    assert mask.shape == (20, 30) and mask.sum() == 30 and mask[0].all()

    metadata = MetadataCatalog.get("hand")
    assert metadata.thing_classes == ["dog", "fly", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 21: 1, 90: 2}
    assert metadata.class_frequency == ["r", "r", "r"]
    assert [c["image_count"] for c in metadata.class_image_count] == [2, 1, 0]
    assert (metadata.json_file, metadata.image_root) == (str(path), str(path.parent))
    assert metadata.evaluator_type == "lvis"


def test_same_as_detectron2(lvis_val_100, register):
    register("val_100", lvis_val_100, "root")
    theirs = load_lvis_json(str(lvis_val_100), "root/", "lvis_v0.5_val_of_this_test")
    ours = load_lvis_format(lvis_val_100, "root", "val_100")
    for our, their in zip(ours, theirs, strict=True):
        assert our.pop("file_name") == f"root/COCO_val2014_{our['image_id']:012d}.jpg"
        del their["file_name"]  # derived from coco_url
        assert our == their
    names = MetadataCatalog.get("val_100").thing_classes
    assert names == MetadataCatalog.get("lvis_v0.5_val_of_this_test").thing_classes


def test_file_name_from_coco_url(small, tmp_path):
    for image in small["images"]:
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['id']:012d}.jpg"
    write_json(small, tmp_path / "x.json")
    records = load_lvis_format(tmp_path / "x.json", "root")
    assert [r["file_name"] for r in records] == [
        "root/train2017/000000000003.jpg",
        "root/train2017/000000000007.jpg",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(ids=st.permutations([0, 1, 2, 3, 50, 7_000_000_000]), counts=st.lists(st.integers(0, 9)))
def test_any_numbering_of_categories(ids, counts, tmp_path):
    images = [
        {"id": i, "file_name": "x", "height": 9, "width": 9}
        | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for i in range(9)
    ]
    pairs = [(ids[k % 6], k, n) for k, count in enumerate(counts[:6]) for n in range(count)]
    annotations = [
        {"id": i, "image_id": n, "category_id": c, "bbox": [0, 0, 1, k], "area": 1}
        for i, (c, k, n) in enumerate(pairs)
    ]
    categories = [{"id": i, "name": f"name {i}"} for i in ids]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    write_json(dataset, tmp_path / "x.json")
    records = load_lvis_format(tmp_path / "x.json", "root")
    for record in records:
        for instance in record["annotations"]:
            k = instance["bbox"][3]  # it encodes the category
            assert sorted(ids)[instance["category_id"]] == ids[k]
    assert sum(len(record["annotations"]) for record in records) == len(annotations)


def test_metadata_for_federated_loss(synthetic, register):
    register("fed", synthetic / "train.json", synthetic)
    ensure_metadata("fed")
    weights = get_fed_loss_cls_weights("fed", 0.5)
    counts = [c["image_count"] for c in read_json(synthetic / "train.json")["categories"]]
    torch.testing.assert_close(weights, torch.tensor(counts).float() ** 0.5)


@pytest.mark.parametrize("mask_format", ["polygon", "rle"])
def test_detectron2_trains_on_it(mask_format, tmp_path, register):
    generate_dataset(
        tmp_path, num_train=5, num_val=1, num_classes=4, image_size=96, mask_format=mask_format
    )
    register(mask_format, tmp_path / "train.json", tmp_path)
    dataset = read_json(tmp_path / "train.json")
    mapper = DatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    records = get_detection_dataset_dicts(mask_format, filter_empty=True)
    assert len(records) == 5
    for record in records:
        instances = mapper(record)["instances"]
        areas = [a["area"] for a in dataset["annotations"] if a["image_id"] == record["image_id"]]
        boxes = [a["bbox"] for a in dataset["annotations"] if a["image_id"] == record["image_id"]]
        assert instances.gt_masks.tensor.sum((1, 2)).tolist() == areas
        sizes = instances.gt_boxes.tensor[:, 2:] - instances.gt_boxes.tensor[:, :2]
        np.testing.assert_allclose(sizes, np.array(boxes)[:, 2:])


def test_files_are_read_on_first_use(register):
    register("lazy", "/nowhere/x.json", "/nowhere")
    with pytest.raises(MissingFileError, match="/nowhere/x.json does not exist"):
        ensure_metadata("lazy")
    with pytest.raises(MissingFileError, match="/nowhere/x.json and /nowhere: not found"):
        require_dataset_files("lazy")


def test_registering_again(register):
    register("twice", "a.json", "root")
    register("twice", "a.json", "root")
    with pytest.raises(UserError, match='"twice" is registered already, with other files'):
        register("twice", "b.json", "root")
    with pytest.raises(UserError, match="rare_max must be"):
        register("thrice", "b.json", "root", rare_max=20, common_max=10)
    assert "thrice" not in DatasetCatalog


def test_thresholds_in_metadata(small, write, register):
    path = write(small)
    register("strict", path, path.parent, rare_max=0, common_max=1)
    ensure_metadata("strict")
    assert MetadataCatalog.get("strict").class_frequency == ["f", "c", "r"]


def test_ensure_metadata_reads_once(small, write, register):
    path = write(small)
    register("once", path, path.parent)
    ensure_metadata("once")
    path.unlink()
    ensure_metadata("once")
    ensure_metadata("lvis_v1_val")  # its classes are built in
    assert len(MetadataCatalog.get("lvis_v1_val").thing_classes) == 1203


def test_wrong_image_root(small, write, register):
    path = write(small)
    register("wrong_root", path, path.parent.parent)
    ensure_metadata("wrong_root")
    require_dataset_files("wrong_root")
    with pytest.raises(MissingFileError, match='a.png, the first image of "wrong_root"'):
        DatasetCatalog.get("wrong_root")


def test_files_exist(synthetic, register):
    register("there", synthetic / "val.json", synthetic)
    require_dataset_files("there")


@pytest.mark.parametrize("function", [ensure_metadata, require_dataset_files])
def test_unknown_name(function):
    with pytest.raises(UserError) as error:
        function("lvis_v1_tarin")
    assert 'No dataset named "lvis_v1_tarin" is registered.' in str(error.value)
    assert "Did you mean lvis_v1_train" in str(error.value)
    assert "DATASETS.LVIS_FORMAT" in str(error.value)
    assert "register_lvis_format" in str(error.value)


def test_lvis_not_downloaded():
    metadata = MetadataCatalog.get("lvis_v1_val")
    if os.path.exists(metadata.json_file):
        pytest.skip("LVIS is installed")
    with pytest.raises(MissingFileError) as error:
        require_dataset_files("lvis_v1_val")
    for part in (
        metadata.json_file,
        os.path.join(metadata.image_root, "train2017"),
        os.path.join(metadata.image_root, "val2017"),
        "lvis_v1_val.json.zip from lvisdataset.org",
        "train2017.zip and val2017.zip from cocodataset.org",
        "DETECTRON2_DATASETS",
    ):
        assert part in str(error.value)


def test_lvis_test_set_without_annotations(tmp_path, monkeypatch):
    """lvis-api, with which detectron2 reads its own LVIS datasets, needs the list."""
    metadata = MetadataCatalog.get("lvis_v1_test_dev")
    (tmp_path / "test2017").mkdir()
    json_file = tmp_path / "lvis_v1_image_info_test_dev.json"
    monkeypatch.setitem(vars(metadata), "json_file", str(json_file))
    monkeypatch.setitem(vars(metadata), "image_root", str(tmp_path) + "/")
    content = {"images": [], "categories": [{"id": 1, "name": "a"}]}
    write_json(content, json_file)
    with pytest.raises(UserError, match='no list "annotations".*DATASETS.LVIS_FORMAT'):
        require_dataset_files("lvis_v1_test_dev")
    write_json(content | {"annotations": []}, json_file)
    require_dataset_files("lvis_v1_test_dev")


def test_other_built_in_dataset():
    metadata = MetadataCatalog.get("coco_2017_val")
    if os.path.exists(metadata.json_file):
        pytest.skip("COCO is installed")
    with pytest.raises(MissingFileError, match="instances_val2017.json.* DETECTRON2_DATASETS"):
        require_dataset_files("coco_2017_val")
