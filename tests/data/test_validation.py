"""Every invalid record has its own error message."""

import math

import pytest

from apa_det.data import read_coco_json, read_lvis_json
from apa_det.errors import UserError
from apa_det.utils.json_files import write_json

IMAGE, ANNOTATION, CATEGORY = "images", "annotations", "categories"


def test_valid_file(small, write):
    assert read_lvis_json(write(small)) == small
    assert read_coco_json(write(small)) == small


def test_real_lvis(lvis_val_100):
    dataset = read_lvis_json(lvis_val_100)
    assert [len(dataset[key]) for key in (IMAGE, ANNOTATION, CATEGORY)] == [100, 977, 1230]


def test_boxes_only(small, write):
    for annotation in small["annotations"]:
        annotation["segmentation"] = []
    read_lvis_json(write(small))


@pytest.mark.parametrize("key", [IMAGE, ANNOTATION, CATEGORY])
def test_missing_table(key, small, tmp_path):
    path = tmp_path / "x.json"
    write_json({k: v for k, v in small.items() if k != key}, path)
    with pytest.raises(UserError, match=f'x.json: the key "{key}" is missing: '):
        read_lvis_json(path)
    write_json(small | {key: {}}, path)
    with pytest.raises(UserError, match=f'x.json: the key "{key}" is not a list: '):
        read_lvis_json(path)


def test_not_a_dataset(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match="x.json: the file contains a JSON list; expected an"):
        read_lvis_json(path)


MISSING = object()
INVALID = [
    (ANNOTATION, "image_id", MISSING, "annotation 11 has no image_id: add the id of its image"),
    (
        ANNOTATION,
        "category_id",
        MISSING,
        "annotation 11 has no category_id: add the id of its category",
    ),
    (ANNOTATION, "bbox", MISSING, "annotation 11 has no bbox; expected"),
    (ANNOTATION, "area", MISSING, "annotation 11 has no area; expected the mask area"),
    (ANNOTATION, "segmentation", MISSING, "annotation 11 has no segmentation, but other"),
    (ANNOTATION, "id", MISSING, "annotation number 1 in the file has no id; expected an integer"),
    (ANNOTATION, "id", "x", "annotation x has the id 'x'; expected an integer"),
    (ANNOTATION, "id", 12, "annotation 12 has a duplicate id"),
    (ANNOTATION, "image_id", 5, "annotation 11 has the image_id 5, but the file has no such image"),
    (ANNOTATION, "category_id", 5, "annotation 11 has the category_id 5, but the file has no such"),
    (
        ANNOTATION,
        "category_id",
        [4],
        r"annotation 11 has the category_id \[4\], but the file has",
    ),
    (
        ANNOTATION,
        "category_id",
        None,
        "annotation 11 has the category_id None, but the file has",
    ),
    (ANNOTATION, "bbox", [1, 2, 3], r"annotation 11 has the bbox \[1, 2, 3\]; expected"),
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
    (
        ANNOTATION,
        "segmentation",
        {"size": [30, 20], "counts": "a"},
        r"of the size \[30, 20\], but",
    ),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": [3]}, "counts do not cover"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": None}, "counts do not cover"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": ["x"]}, "counts do not cover"),
    (IMAGE, "height", MISSING, "image 7 has no height; expected an integer > 0"),
    (IMAGE, "width", 0, "image 7 has the width 0"),
    (IMAGE, "file_name", MISSING, "image 7 has neither file_name nor coco_url"),
    (IMAGE, "id", 3, "image 3 has a duplicate id"),
    (IMAGE, "neg_category_ids", MISSING, "image 7 has no neg_category_ids, .* coco-to-lvis"),
    (IMAGE, "not_exhaustive_category_ids", MISSING, "image 7 has no not_exhaustive_category_ids"),
    (CATEGORY, "name", MISSING, "category 90 has no name"),
    (CATEGORY, "name", "dog", 'category 4 has the same name as another category, "dog"'),
    (CATEGORY, "id", 4, "category 4 has a duplicate id"),
    (CATEGORY, "frequency", "rare", "category 90 has the frequency 'rare'; expected r, c or f"),
    (CATEGORY, "image_count", "9", "category 90 has the image_count '9'"),
    (CATEGORY, "instance_count", -9, "category 90 has the instance_count -9"),
]


@pytest.mark.parametrize("table, key, value, message", INVALID)
def test_invalid_record(table, key, value, message, small, tmp_path):
    record = small[table][0]
    if value is MISSING:
        del record[key]
    else:
        record[key] = value
    path = tmp_path / "x.json"
    write_json(small, path)
    with pytest.raises(UserError, match=f"^{path}: .*{message}.*prepare_dataset.py check lists"):
        read_lvis_json(path)


@pytest.mark.parametrize("table", [IMAGE, ANNOTATION, CATEGORY])
def test_record_that_is_not_an_object(table, small, tmp_path):
    small[table].insert(1, 5)
    write_json(small, tmp_path / "x.json")
    with pytest.raises(UserError, match="number 2 in the file is not a JSON object"):
        read_lvis_json(tmp_path / "x.json")


def test_no_categories(small, write):
    with pytest.raises(UserError, match='the list "categories" is empty'):
        read_lvis_json(write(small | {"categories": [], "annotations": []}))


@pytest.mark.parametrize(
    "table, key, value",
    [
        (ANNOTATION, "area", MISSING),
        (ANNOTATION, "segmentation", MISSING),
        (ANNOTATION, "segmentation", [[1, 2, 3, 4]]),
        (ANNOTATION, "iscrowd", 1),
        (IMAGE, "neg_category_ids", MISSING),
    ],
)
def test_valid_in_coco_format(table, key, value, small, write):
    small[table][0].pop(key, None)
    if value is not MISSING:
        small[table][0][key] = value
    read_coco_json(write(small))


def test_invalid_coco_file(small, write):
    del small["annotations"][0]["image_id"]
    with pytest.raises(
        UserError, match="annotation 11 has no image_id: .* remove the annotation.$"
    ):
        read_coco_json(write(small))
