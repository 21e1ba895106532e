"""Packed datasets: the same dicts as from a plain reading of the JSON, for any file and use."""

import copy
import functools
import io
import json
import os
import pickle
import tempfile

import numpy as np
import pytest
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_lvis_instances
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from apa_det.data import (
    DatasetRecords,
    build_train_loader,
    get_dataset_records,
    load_lvis_format,
    packing,
    register_lvis_format,
)
from apa_det.data.fractal_dimension import read_class_boxes, shares_and_dimensions
from apa_det.data.packed import read_packed
from apa_det.data.polygon_text import parse_polygons
from apa_det.data.sampling.loader import without_small
from apa_det.data.sampling.registry import TRAIN_SAMPLER_REGISTRY
from apa_det.errors import UserError
from apa_det.utils import shared_files
from apa_det.utils.json_stream import read_json_tables


def plain_records(path, root: str) -> list[dict]:
    """Read an LVIS file the simple way: RLE is compressed, all else is as in the file."""
    dataset = json.loads(path.read_text())
    classes = {id_: i for i, id_ in enumerate(sorted(c["id"] for c in dataset["categories"]))}
    records = []
    for image in sorted(dataset["images"], key=lambda image: image["id"]):
        keys = ("height", "width", "neg_category_ids", "not_exhaustive_category_ids")
        record = {"file_name": f"{root}/{image['file_name']}", "image_id": image["id"]}
        record |= {key: image[key] for key in keys} | {"annotations": []}
        for annotation in dataset["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            instance = {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": classes[annotation["category_id"]],
            }
            mask = annotation.get("segmentation")
            if mask and isinstance(mask, dict) and isinstance(mask["counts"], list):
                mask = mask_utils.frPyObjects(mask, *mask["size"])
            if mask:
                instance["segmentation"] = mask
            record["annotations"].append(instance)
        records.append(record)
    return records


def number(low: int, high: int):
    whole = st.integers(low, high)
    return st.one_of(
        whole,
        *(whole.map(lambda n, k=k: round(n + 1 / 3, k)) for k in (0, 1, 2, 3)),
        st.floats(low, high),
    )


HEIGHT, WIDTH = 8, 9
POLYGON = st.integers(3, 5).flatmap(
    lambda n: st.lists(number(-7, 15), min_size=2 * n, max_size=2 * n)
)
RUNS = st.integers(0, HEIGHT * WIDTH).map(lambda n: [n, HEIGHT * WIDTH - n])
RLE = RUNS.map(lambda runs: {"size": [HEIGHT, WIDTH], "counts": runs})
TEXT_RLE = RLE.map(lambda rle: mask_utils.frPyObjects(rle, HEIGHT, WIDTH)).map(
    lambda rle: {**rle, "counts": rle["counts"].decode()}
)
MASK = st.one_of(st.lists(POLYGON, min_size=1, max_size=3), RLE, TEXT_RLE)


@st.composite
def datasets(draw) -> dict:
    ids = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True))
    categories = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    has_masks = draw(st.booleans())
    images = [
        {
            "id": i,
            "file_name": draw(st.text('aé字]}, {["\\', min_size=1, max_size=6)) + "x",
            "height": HEIGHT,
            "width": WIDTH,
            "neg_category_ids": draw(st.lists(st.sampled_from(categories), max_size=2)),
            "not_exhaustive_category_ids": draw(st.lists(st.sampled_from(categories), max_size=2)),
            "parts": [{"a": [{}, {}]}, {"segmentation": [[1, 2]]}] * draw(st.integers(0, 1)),
        }
        for i in ids
    ]
    annotations = []
    for i in range(draw(st.integers(0, 6))):
        annotation = {
            "id": i,
            "image_id": draw(st.sampled_from(ids)),
            "category_id": draw(st.sampled_from(categories)),
            "bbox": draw(st.lists(number(-3, 9), min_size=4, max_size=4)),
            "area": draw(number(0, 9)),
            "attributes": [{}, {"segmentation": [[1, 2]]}] * (draw(st.integers(0, 9)) // 9),
        }
        if has_masks:
            annotation["segmentation"] = draw(MASK)
        annotations.append(annotation)
    tables = {
        "info": {"images": [1], "text": '"segmentation": [['},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"n{i}"} for i in categories],
    }
    return {key: tables[key] for key in draw(st.permutations([*tables]))}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None
)
@given(
    dataset=datasets(),
    style=st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 1}, {"ensure_ascii": False}]),
    block=st.sampled_from([1, 50, 500, 1 << 20]),
)
def test_same_as_plain_reading(dataset, style, block, tmp_path):
    path = tmp_path / f"{np.random.default_rng().integers(2**62)}.json"
    path.write_text(json.dumps(dataset, **style))
    in_blocks = functools.partial(read_json_tables, block=block)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(packing, "read_json_tables", in_blocks)
        records = load_lvis_format(path, "root", allow_outside_root=True)
    expected = plain_records(path, "root")
    assert list(records) == expected
    for record, plain in zip(records, expected, strict=True):  # integers stay integers
        for ours, theirs in zip(record["annotations"], plain["annotations"], strict=True):
            if {type(v) for v in theirs["bbox"]} == {int}:
                assert {type(v) for v in ours["bbox"]} == {int}
    path.unlink()


def test_a_valid_file_is_read_in_parts(small, write, monkeypatch):
    monkeypatch.setattr(packing, "read_lvis_json", None)
    path = write(small)
    assert list(load_lvis_format(path, "root")) == plain_records(path, "root")


NUMBER_TEXT = st.one_of(
    st.integers(0, 99_999).map(str),
    st.tuples(st.integers(0, 9_999), st.text("0123456789", min_size=1, max_size=3)).map(
        lambda pair: f"{pair[0]}.{pair[1]}"
    ),
    st.sampled_from(["-1", "1e2", "01", "1.", ".5", "", "1.2.3", "NaN", "1 2", "00", "٣"]),
    st.text("0123456789.,; |[]e-", max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.lists(NUMBER_TEXT, min_size=1, max_size=4), min_size=1), min_size=1),
    st.sampled_from([", ", ","]),
)
def test_polygon_text(masks, comma):
    texts = [f"]{comma}[".join(map(comma.join, polygons)) for polygons in masks]
    try:
        expected = [json.loads(f"[[{text}]]") for text in texts]
    except ValueError:
        expected = None
    parsed = parse_polygons(texts)
    if parsed is None:
        return
    values = [value for mask in expected for polygon in mask for value in polygon]
    assert (parsed.points / 100).tolist() == values
    assert parsed.lengths.tolist() == [len(polygon) for mask in expected for polygon in mask]
    assert parsed.numbers.tolist() == [len(mask) for mask in expected]
    whole = [all(type(v) is int for polygon in mask for v in polygon) for mask in expected]
    assert parsed.whole.tolist() == whole


def test_polygons_of_lvis_are_parsed(lvis_val_100):
    masks = [a["segmentation"] for a in json.loads(lvis_val_100.read_text())["annotations"]]
    assert parse_polygons([json.dumps(mask)[2:-2] for mask in masks]) is not None


@pytest.fixture
def registered(synthetic):
    """The names of two registered datasets, and of one in detectron2's own registration."""
    names = ["packed_train", "packed_val"]
    for name, split in zip(names, ("train", "val"), strict=True):
        register_lvis_format(name, synthetic / f"{split}.json", synthetic)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("filter_empty", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_same_as_detectron2s_function(registered, filter_empty, number, caplog):
    names = registered[:number]
    expected = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    records = get_dataset_records(names, filter_empty=filter_empty)
    assert isinstance(records, DatasetRecords) and type(expected) is list
    assert list(records) == expected and len(records) == len(expected)
    assert records[-1] == expected[-1] and list(records[3:9:2]) == expected[3:9:2]
    assert expected[5] in records
    with pytest.raises(IndexError):
        records[len(records)]


def test_other_datasets_are_left_to_detectron2(registered):
    DatasetCatalog.register("packed_other", lambda: [{"image_id": 1, "annotations": [{}]}])
    try:
        both = get_dataset_records([registered[0], "packed_other"], check_consistency=False)
    finally:
        DatasetCatalog.remove("packed_other")
    assert type(both) is list and both[-1]["image_id"] == 1


def test_lvis_of_detectron2(tmp_path):
    images = [
        {"id": i, "coco_url": f"http://x/train2017/{i}.jpg", "height": 9, "width": 8}
        | {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
        for i in (5, 2)
    ]
    annotation = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 1, 3, 3], "area": 4.5}
    annotation["segmentation"] = [[1.0, 1.0, 4.0, 1.0, 4.0, 4.0]]
    categories = [{"id": i, "name": f"n{i}", "image_count": 1} for i in range(1, 1204)]
    dataset = {"images": images, "annotations": [annotation], "categories": categories}
    (tmp_path / "x.json").write_text(json.dumps(dataset))
    register_lvis_instances("lvis_v1_packed", {}, str(tmp_path / "x.json"), "root/")
    try:
        expected = get_detection_dataset_dicts("lvis_v1_packed", filter_empty=False)
        records = get_dataset_records("lvis_v1_packed", filter_empty=False)
    finally:
        DatasetCatalog.remove("lvis_v1_packed")
        MetadataCatalog.remove("lvis_v1_packed")
    assert isinstance(records, DatasetRecords) and list(records) == expected


@pytest.mark.parametrize("name", [name for name, _ in TRAIN_SAMPLER_REGISTRY])
def test_same_samplers_and_batches(name, registered):
    arguments = {
        "mapper": lambda record: record,
        "total_batch_size": 3,
        "sampler": name,
        "repeat_thresh": 0.6,
        "subset_ratio": 0.7,
        "min_image_side": 32,
        "min_box_side": 12,
        "dataset_names": registered,
        "seed": 4,
    }
    packed = build_train_loader(get_dataset_records(registered), **arguments)
    listed = build_train_loader(get_detection_dataset_dicts(registered), **arguments)
    for _, ours, theirs in zip(range(60), packed, listed, strict=False):
        assert ours == theirs


def test_small_boxes_and_images_are_left_out(registered):
    records, dicts = get_dataset_records(registered), get_detection_dataset_dicts(registered)
    for sides in ((0, 20), (96, 14.5), (32, 0)):
        assert list(without_small(records, *sides)) == without_small(dicts, *sides)
    with pytest.raises(UserError, match="No training image has sides of 97"):
        without_small(records, 97)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_workers_share_the_file(method, registered):
    loader = build_train_loader(
        get_dataset_records(registered[1]),
        mapper=copy.deepcopy,
        total_batch_size=2,
        num_workers=2,
        seed=1,
        multiprocessing_context=method,
    )
    expected = build_train_loader(
        get_detection_dataset_dicts(registered[1]), mapper=copy.deepcopy, total_batch_size=2, seed=1
    )
    for _, ours, theirs in zip(range(5), loader, expected, strict=False):
        assert ours == theirs


def test_detectron2s_own_loader(registered):
    """It takes the list of its own function, or the records as a PyTorch dataset."""
    for dataset in (get_detection_dataset_dicts(registered[1]), get_dataset_records(registered[1])):
        loader = build_detection_train_loader(dataset, mapper=lambda r: r, total_batch_size=2)
        assert len(next(iter(loader))) == 2


def test_pickling_takes_no_data_along(registered):
    records = get_dataset_records(registered[0])
    assert len(pickle.dumps(records)) < 20 * records.owners.size + 10_000
    assert list(pickle.loads(pickle.dumps(records))) == list(records)
    assert copy.deepcopy(records)[3] == records[3]


def test_changes_are_kept_in_a_list_only(registered):
    records = get_dataset_records(registered[0])
    records[0]["annotations"].clear()
    assert records[0]["annotations"]
    dicts = DatasetCatalog.get(registered[0])
    dicts[0]["annotations"].clear()
    assert not dicts[0]["annotations"]


def test_fractal_dimensions(registered, synthetic):
    metadata = MetadataCatalog.get(registered[0])
    get_dataset_records(registered[0])
    boxes = read_class_boxes(synthetic / "train.json")
    shares, dimensions = shares_and_dimensions([registered[0]]).T.tolist()
    counts = [count["image_count"] for count in metadata.class_image_count]
    assert shares == pytest.approx([count / 240 for count in counts])
    from apa_det.data.fractal_dimension import fractal_dimensions

    expected = fractal_dimensions(boxes.centers, boxes.image_sizes, boxes.classes, 12)
    assert dimensions == pytest.approx(expected.tolist())


def test_without_shared_files(small, write, monkeypatch):
    monkeypatch.setattr(shared_files, "_CAN_SHARE", False)
    path = write(small)
    records = load_lvis_format(path, "root")
    assert list(pickle.loads(pickle.dumps(records))) == plain_records(path, "root")


@pytest.mark.parametrize("kind", ["write", "open"])
def test_no_space(kind, small, write, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def fail():
        raise OSError(28, "No space left on device")

    if kind == "write":
        monkeypatch.setattr(packing, "new_file", Full)
    else:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(UserError, match="No space left on device. Set the environment"):
        load_lvis_format(write(small), "root")


def test_a_changed_file_is_read_again(small, write):
    path = write(small)
    assert len(read_packed(path).image_ids) == 2
    small["images"].append({**small["images"][0], "id": 8, "file_name": "b.png"})
    write(small)
    assert len(read_packed(path).image_ids) == 3
