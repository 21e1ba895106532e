"""Every fault of a file has its one clear error."""

import math

import pytest

from apa_det.data import read_coco_json, read_lvis_json
from apa_det.utils.json_files import write_json

IMAGE, ANNOTATION, CATEGORY = "images", "annotations", "categories"


def test_sound_file(small, write):
    assert read_lvis_json(write(small)) == small
    assert read_coco_json(write(small)) == small


def test_real_lvis(lvis_val_100):
    dataset = read_lvis_json(lvis_val_100)
    assert [len(dataset[key]) for key in (IMAGE, ANNOTATION, CATEGORY)] == [100, 977, 1230]


def test_boxes_alone(small, write):
    for annotation in small["annotations"]:
        annotation["segmentation"] = []
    read_lvis_json(write(small))


@pytest.mark.parametrize("key", [IMAGE, ANNOTATION, CATEGORY])
def test_missing_table(key, small, tmp_path):
    path = tmp_path / "x.json"
    write_json({k: v for k, v in small.items() if k != key}, path)
    with pytest.raises(ValueError, match=f'x.json: the key "{key}" is missing: '):
        read_lvis_json(path)
    write_json(small | {key: {}}, path)
    with pytest.raises(ValueError, match=f'x.json: the key "{key}" is not a list: '):
        read_lvis_json(path)


def test_not_a_dataset(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="x.json: the file holds a JSON list, not an object"):
        read_lvis_json(path)


GONE = object()
FAULTS = [
    (ANNOTATION, "image_id", GONE, "annotation 11 has no image_id: give it the id of its image"),
    (
        ANNOTATION,
        "category_id",
        GONE,
        "annotation 11 has no category_id: give it the id of its cat",
    ),
    (ANNOTATION, "bbox", GONE, "annotation 11 has no bbox: it needs"),
    (ANNOTATION, "area", GONE, "annotation 11 has no area: give the mask's area"),
    (ANNOTATION, "segmentation", GONE, "annotation 11 has no segmentation where others have one"),
    (ANNOTATION, "id", GONE, "annotation number 1 in the file has no usable id: it is missing"),
    (ANNOTATION, "id", "x", "annotation x has no usable id: it is not a whole number"),
    (ANNOTATION, "id", 12, "annotation 12 has the id of another one"),
    (ANNOTATION, "image_id", 5, "annotation 11 has the image_id 5, which no image in the file has"),
    (ANNOTATION, "category_id", 5, "annotation 11 has the category_id 5, which no category"),
    (ANNOTATION, "category_id", [4], r"annotation 11 has the category_id \[4\], which no category"),
    (ANNOTATION, "category_id", None, "annotation 11 has the category_id None, which no category"),
    (ANNOTATION, "bbox", [1, 2, 3], r"annotation 11 has the bbox \[1, 2, 3\]: it needs"),
    (ANNOTATION, "bbox", [1, 2, 3, "4"], "annotation 11 has the bbox"),
    (ANNOTATION, "bbox", [1, 2, 3, math.nan], "annotation 11 has the bbox"),
    (ANNOTATION, "bbox", None, "annotation 11 has the bbox None"),
    (ANNOTATION, "area", -1, "annotation 11 has the area -1"),
    (ANNOTATION, "area", math.nan, "annotation 11 has the area nan"),
    (ANNOTATION, "iscrowd", 1, "annotation 11 is a crowd .* coco-to-lvis"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4]], "annotation 11 has a segmentation with a polygon"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4, 5, 6, 7]], "annotation 11 has a segmentation with"),
    (ANNOTATION, "segmentation", [1, 2, 3, 4, 5, 6], "annotation 11 has a segmentation with"),
    (ANNOTATION, "segmentation", "mask", "annotation 11 has a segmentation that is neither"),
    (ANNOTATION, "segmentation", {"size": [30, 20], "counts": "a"}, r"of the size \[30, 20\], not"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": [3]}, "counts do not cover"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": None}, "counts do not cover"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": ["x"]}, "counts do not cover"),
    (IMAGE, "height", GONE, "image 7 has no height: give it as a whole number of pixels"),
    (IMAGE, "width", 0, "image 7 has the width 0"),
    (IMAGE, "file_name", GONE, "image 7 has neither file_name nor coco_url"),
    (IMAGE, "id", 3, "image 3 has the id of another one"),
    (IMAGE, "neg_category_ids", GONE, "image 7 has no neg_category_ids, .* coco-to-lvis"),
    (IMAGE, "not_exhaustive_category_ids", GONE, "image 7 has no not_exhaustive_category_ids"),
    (CATEGORY, "name", GONE, "category 90 has no name"),
    (CATEGORY, "name", "dog", 'category 4 has the name of another one, "dog": rename it'),
    (CATEGORY, "id", 4, "category 4 has the id of another one"),
    (CATEGORY, "frequency", "rare", "category 90 has the frequency 'rare': use r, c or f"),
    (CATEGORY, "image_count", "9", "category 90 has the image_count '9'"),
    (CATEGORY, "instance_count", -9, "category 90 has the instance_count -9"),
]


@pytest.mark.parametrize("table, key, value, message", FAULTS)
def test_fault(table, key, value, message, small, tmp_path):
    record = small[table][0]
    if value is GONE:
        del record[key]
    else:
        record[key] = value
    path = tmp_path / "x.json"
    write_json(small, path)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}.*prepare_dataset.py check lists"):
        read_lvis_json(path)


@pytest.mark.parametrize("table", [IMAGE, ANNOTATION, CATEGORY])
def test_record_that_is_no_object(table, small, tmp_path):
    small[table].insert(1, 5)
    write_json(small, tmp_path / "x.json")
    with pytest.raises(ValueError, match="number 2 in the file is not a JSON object"):
        read_lvis_json(tmp_path / "x.json")


def test_no_category(small, write):
    with pytest.raises(ValueError, match='the list "categories" is empty'):
        read_lvis_json(write(small | {"categories": [], "annotations": []}))


@pytest.mark.parametrize(
    "table, key, value",
    [
        (ANNOTATION, "area", GONE),
        (ANNOTATION, "segmentation", GONE),
        (ANNOTATION, "segmentation", [[1, 2, 3, 4]]),
        (ANNOTATION, "iscrowd", 1),
        (IMAGE, "neg_category_ids", GONE),
    ],
)
def test_coco_may_have_these(table, key, value, small, write):
    small[table][0].pop(key, None)
    if value is not GONE:
        small[table][0][key] = value
    read_coco_json(write(small))


def test_error_of_a_coco_file(small, write):
    del small["annotations"][0]["image_id"]
    with pytest.raises(ValueError, match="annotation 11 has no image_id: .* or remove it.$"):
        read_coco_json(write(small))
