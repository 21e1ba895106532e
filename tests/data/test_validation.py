"""Every invalid record has its own error message."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.data import coco_to_lvis, read_coco_json, read_lvis_json
from apa_det.data.validation import structure_problems
from apa_det.errors import UserError
from apa_det.text import has_control
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


@pytest.mark.parametrize("key", [IMAGE, CATEGORY])
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
    with pytest.raises(UserError, match="x.json: the file must be an object .*, got a JSON list"):
        read_lvis_json(path)


MISSING = object()
MASK = "annotation 11: segmentation "
INVALID = [
    (
        ANNOTATION,
        "image_id",
        MISSING,
        "annotation 11: image_id is missing; add the id of",
    ),
    (ANNOTATION, "category_id", MISSING, "annotation 11: category_id is missing; add the id of"),
    (ANNOTATION, "bbox", MISSING, "annotation 11: bbox is missing; add"),
    (ANNOTATION, "area", MISSING, "annotation 11: area is missing; add the mask area"),
    (ANNOTATION, "segmentation", MISSING, MASK + "is missing, but other annotations"),
    (ANNOTATION, "id", MISSING, "annotation number 1 in the file: id is missing; add a unique int"),
    (ANNOTATION, "id", "x", "annotation number 1 in the file: id must be an integer .*, got 'x'"),
    (
        ANNOTATION,
        "id",
        2**70,
        "annotation number 1 .* into 64 bits, got 1180591620717411303424",
    ),
    (ANNOTATION, "id", True, "annotation number 1 in the file: id must be an integer .*, got True"),
    (ANNOTATION, "id", 12, "annotation 12: id must be unique, got 12 again"),
    (ANNOTATION, "image_id", 5, "annotation 11: image_id must be the id of .* images, got 5; add"),
    (ANNOTATION, "image_id", 7.0, "annotation 11: image_id must be the id of .* images, got 7.0"),
    (ANNOTATION, "category_id", 5, "annotation 11: category_id must be .* categories, got 5; add"),
    (ANNOTATION, "category_id", [4], r"annotation 11: category_id must be .*, got \[4\]"),
    (ANNOTATION, "category_id", None, "annotation 11: category_id must be .*, got None"),
    (ANNOTATION, "bbox", [1, 2, 3], r"annotation 11: bbox must be \[x, y, .*, got \[1, 2, 3\]"),
    (ANNOTATION, "bbox", [1, 2, 3, "4"], r"annotation 11: bbox must be .*, got \[1, 2, 3, '4'\]"),
    (ANNOTATION, "bbox", [1, 2, 3, True], r"annotation 11: bbox must be .*, got \[1, 2, 3, True\]"),
    (ANNOTATION, "bbox", [1, 2, 3, math.nan], "annotation 11: bbox must be .*, got .*nan"),
    (
        ANNOTATION,
        "bbox",
        [10**400, 2, 3, 4],
        "annotation 11: bbox must be .*, got .an integer of",
    ),
    (ANNOTATION, "bbox", [1e300, 2, 3, 4], r"annotation 11: bbox must be .*, got \[1e\+300"),
    (ANNOTATION, "bbox", None, "annotation 11: bbox must be .*, got None"),
    (ANNOTATION, "area", -1, "annotation 11: area must be .* >= 0, got -1"),
    (ANNOTATION, "area", math.nan, "annotation 11: area must be .*, got nan"),
    (ANNOTATION, "area", 10**400, "annotation 11: area must be .*, got an integer of 1,329 bits"),
    (ANNOTATION, "iscrowd", 1, "annotation 11: iscrowd must be 0 in LVIS format, .* coco-to-lvis"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4]], MASK + r"polygons .*, got \[1, 2, 3, 4\]; remove"),
    (
        ANNOTATION,
        "segmentation",
        [[1, 2, 3, 4, 5, 6, 7]],
        MASK + "polygons must have an even num",
    ),
    (ANNOTATION, "segmentation", [1, 2, 3, 4, 5, 6], MASK + "must be a list of polygons"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4, 5, "6"]], MASK + "coordinates must be finite"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4, 5, math.inf]], MASK + "coordinates must be finite"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4, 61, 6]], MASK + "coordinates .* 30 x 20 pixels"),
    (ANNOTATION, "segmentation", [[1, 2, 3, 4, 5, -21]], MASK + "coordinates .* 30 x 20 pixels"),
    (ANNOTATION, "segmentation", "mask", MASK + "must be polygons or RLE, got 'mask'"),
    (ANNOTATION, "segmentation", {"size": [30, 20], "counts": "a"}, MASK + "size .* got .30, 20.;"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": [3]}, MASK + r"counts .* got \[3\]"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": [-5, 605]}, MASK + "counts .*>= 0"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": [300.0, 300]}, MASK + "counts"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": "a"}, MASK + "counts .* 600 pixels"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": "b'hb0'"}, MASK + "counts .*decode"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": None}, MASK + "counts .* got None"),
    (ANNOTATION, "segmentation", {"size": [20, 30], "counts": ["x"]}, MASK + "counts"),
    (ANNOTATION, "segmentation", {"size": [20, 30]}, MASK + "must be RLE with size and counts"),
    (IMAGE, "height", MISSING, "image 7: height is missing; add it"),
    (IMAGE, "width", 0, "image 7: width must be an integer from 1 to 65,536"),
    (IMAGE, "width", 65537, "image 7: width must be an integer from 1 to 65,536"),
    (IMAGE, "file_name", MISSING, "image 7: file_name must be text, got None"),
    (IMAGE, "file_name", 5, "image 7: file_name must be text, got 5"),
    (IMAGE, "id", 3, "image 3: id must be unique, got 3 again"),
    (IMAGE, "neg_category_ids", MISSING, "image 7: neg_category_ids is missing; .* coco-to-lvis"),
    (
        IMAGE,
        "neg_category_ids",
        [[1]],
        r"image 7: neg_category_ids must be .*, got \[\[1\]\]",
    ),
    (IMAGE, "neg_category_ids", [2**64], "image 7: neg_category_ids must be a list of category"),
    (IMAGE, "not_exhaustive_category_ids", MISSING, "image 7: not_exhaustive_category_ids is miss"),
    (CATEGORY, "name", MISSING, "category 90: name is missing; add it"),
    (CATEGORY, "name", 5, "category 90: name must be text, got 5"),
    (CATEGORY, "name", "dog", "category 4: name must be unique, got 'dog' again"),
    (CATEGORY, "id", 4, "category 4: id must be unique, got 4 again"),
    (CATEGORY, "frequency", "rare", "category 90: frequency must be r, c or f, got 'rare'"),
    (CATEGORY, "image_count", "9", "category 90: image_count must be .*, got '9'"),
    (CATEGORY, "instance_count", -9, "category 90: instance_count must be .*, got -9"),
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
    with pytest.raises(UserError, match=f"^{path}: {message}.*prepare_dataset.py check lists"):
        read_lvis_json(path)


@pytest.mark.parametrize("table", [IMAGE, ANNOTATION, CATEGORY])
def test_record_that_is_not_an_object(table, small, tmp_path):
    small[table].insert(1, 5)
    write_json(small, tmp_path / "x.json")
    with pytest.raises(UserError, match="number 2 in the file must be a JSON object, got 5"):
        read_lvis_json(tmp_path / "x.json")


def test_image_of_too_many_pixels(small):
    small["images"][0] |= {"width": 2**16, "height": 2**16}
    problem = next(structure_problems(small))
    assert problem.message.startswith(
        "image 7: height x width must be at most 2,147,483,648 pixels"
    )


def test_all_problems_of_all_records(small):
    """Also several of one record, and of many records."""
    square = small["annotations"][0]
    small["annotations"] += [square | {"id": 1000 + i} for i in range(20_000)]
    for index, faults in ((0, {"bbox": None, "area": -1}), (15_000, {"image_id": 8})):
        small["annotations"][index] |= faults
    small["images"][1]["height"] = "20"
    found = [(p.record, p.kind) for p in structure_problems(small)]
    assert found == [
        ((IMAGE, 1), "image without valid height"),
        ((ANNOTATION, 0), "annotation without valid bbox"),
        ((ANNOTATION, 0), "annotation without valid area"),
        ((ANNOTATION, 15_000), "annotation without valid image_id"),
    ]


@given(st.text())
def test_any_category_name(name):
    dataset = {
        "images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3]}],
        "categories": [{"id": 1, "name": name}],
    }
    problems = list(structure_problems(dataset, coco=True))
    if has_control(name):
        assert [problem.kind for problem in problems] == ["category without valid name"]
        return
    assert not problems
    lvis = coco_to_lvis(dataset, count_from=dataset)
    assert not list(structure_problems(lvis)) and lvis["categories"][0]["name"] == name


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
        UserError, match="annotation 11: image_id is missing; .* remove the annotation.$"
    ):
        read_coco_json(write(small))
