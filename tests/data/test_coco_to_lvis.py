"""COCO to LVIS: the instances and the meaning of the metric are kept."""

import copy

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from apa_det.data import coco_to_lvis, read_coco_json, read_lvis_json
from apa_det.errors import UserError
from apa_det.evaluation import Detections, GroundTruth, evaluate
from apa_det.utils.json_files import write_json


@pytest.fixture
def coco():
    """Two images: a dog, a crowd of dogs and a crowd of cats; and an empty one."""
    square = [[2, 2, 6, 2, 6, 6, 2, 6]]
    crowd = {"size": [20, 30], "counts": [0, 40, 560]}
    dog = {"id": 1, "image_id": 1, "category_id": 18, "bbox": [2, 2, 4, 4], "area": 16}
    dogs = dog | {"id": 2, "iscrowd": 1, "segmentation": crowd}
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 2, "file_name": "b.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            dog | {"iscrowd": 0, "segmentation": square},
            dogs,
            dogs | {"id": 3, "category_id": 17},
        ],
        "categories": [
            {"id": 17, "name": "cat", "supercategory": "animal"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
            {"id": 90, "name": "brush", "supercategory": "thing"},
        ],
    }


def test_by_hand(coco):
    before = copy.deepcopy(coco)
    lvis = coco_to_lvis(coco)
    assert coco == before
    first, second = lvis["images"]
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([90], [17, 18])
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([17, 18, 90], [])
    assert first["file_name"] == "a.jpg"
    (dog,) = lvis["annotations"]
    assert dog == {k: v for k, v in coco["annotations"][0].items() if k != "iscrowd"}
    assert [c["image_count"] for c in lvis["categories"]] == [0, 1, 0]
    assert [c["frequency"] for c in lvis["categories"]] == ["r", "r", "r"]
    assert lvis["categories"][2]["supercategory"] == "thing"
    assert lvis["info"] == {
        "year": 2017,
        "coco_to_lvis": {"images": 2, "annotations": 1, "crowds": 2, "unusable": 0},
    }


@pytest.mark.parametrize(
    "fault",
    [
        {"bbox": [2, 2, 0, 4]},
        {"bbox": [2, 2, 4, -4]},
        {"segmentation": []},
        {"segmentation": [[2, 2, 6, 2]]},
        {"segmentation": [[2, 2, 2, 2, 2, 2]], "area": 0},
    ],
)
def test_unusable_annotation(fault, coco):
    coco["annotations"].append(coco["annotations"][0] | {"id": 4, "image_id": 2} | fault)
    lvis = coco_to_lvis(coco)
    assert [a["id"] for a in lvis["annotations"]] == [1]
    assert lvis["images"][1]["neg_category_ids"] == [17, 90]
    assert lvis["images"][1]["not_exhaustive_category_ids"] == [18]
    assert lvis["info"]["coco_to_lvis"]["unusable"] == 1


@pytest.mark.parametrize("area", [None, 0, float("nan"), "16"])
def test_area_from_the_mask(area, coco):
    coco["annotations"][0]["area"] = area
    assert coco_to_lvis(coco)["annotations"][0]["area"] == 16
    coco["annotations"][0]["segmentation"] = {"size": [20, 30], "counts": [0, 7, 593]}
    assert coco_to_lvis(coco)["annotations"][0]["area"] == 7


def test_polygons_of_two_points_are_removed(coco):
    polygons = coco["annotations"][0]["segmentation"]
    coco["annotations"][0]["segmentation"] = [*polygons, [1, 1, 2, 2]]
    assert coco_to_lvis(coco)["annotations"][0]["segmentation"] == polygons


def test_boxes_only(coco, tmp_path):
    del coco["annotations"][0]["segmentation"], coco["annotations"][0]["area"]
    lvis = coco_to_lvis(coco)
    assert lvis["annotations"][0]["area"] == 16
    write_json(lvis, tmp_path / "x.json")
    read_lvis_json(tmp_path / "x.json")


def test_images_that_are_not_annotated_exhaustively(coco, tmp_path):
    """Only their own lists count; a category with instances is no negative."""
    image = coco["images"][0]
    present = {a["category_id"] for a in coco["annotations"] if a["image_id"] == image["id"]}
    category_ids = [c["id"] for c in coco["categories"]]
    absent = [i for i in category_ids if i not in present]
    image["neg_category_ids"] = category_ids
    image["not_exhaustive_category_ids"] = absent[:1]
    first, *others = coco_to_lvis(coco)["images"]
    assert first["neg_category_ids"] == absent[1:]
    assert absent[0] in first["not_exhaustive_category_ids"]
    assert (
        others
        == coco_to_lvis(
            {
                **coco,
                "images": coco["images"][1:],
                "annotations": [a for a in coco["annotations"] if a["image_id"] != image["id"]],
            }
        )["images"]
    )
    image["neg_category_ids"] = "x"
    write_json(coco, tmp_path / "x.json")
    with pytest.raises(UserError, match="neg_category_ids must be a list of category ids"):
        read_coco_json(tmp_path / "x.json")


def test_counts_from_train(coco):
    train = copy.deepcopy(coco)
    train["annotations"] += [
        train["annotations"][0] | {"id": 10 + i, "image_id": 2, "category_id": 90} for i in range(3)
    ]
    brush = coco_to_lvis(coco, count_from=train, rare_max=0)["categories"][2]
    assert (brush["image_count"], brush["instance_count"], brush["frequency"]) == (1, 3, "c")
    # The counts of a training set in LVIS format are those of its categories.
    train = coco_to_lvis(train)
    train["categories"][2] |= {"image_count": 500, "frequency": "f"}
    brush = coco_to_lvis(coco, count_from=train)["categories"][2]
    assert (brush["image_count"], brush["frequency"]) == (500, "f")
    # Categories go by name.
    first, second = train["categories"][1:]
    first["id"], second["id"] = second["id"], first["id"]
    assert coco_to_lvis(coco, count_from=train)["categories"][2]["image_count"] == 500


def test_counts_from_another_dataset(coco):
    other = copy.deepcopy(coco)
    other["categories"][1]["name"] = "wolf"
    with pytest.raises(UserError, match="lacks the categories 'dog'. Categories go by"):
        coco_to_lvis(coco, count_from=other)
    del other["categories"][1]
    other["annotations"] = []
    with pytest.raises(UserError, match="lacks the categories 'dog'"):
        coco_to_lvis(coco, count_from=other)


@pytest.mark.parametrize("split", ["train", "val"])
def test_tinycoco_keeps_every_instance(split, tinycoco, tmp_path):
    coco = read_coco_json(tinycoco / f"annotations/instances_{split}2017.json")
    lvis = coco_to_lvis(coco)
    path = tmp_path / "lvis.json"
    write_json(lvis, path)
    assert read_lvis_json(path)["annotations"] == lvis["annotations"]
    single = [a for a in coco["annotations"] if not a["iscrowd"]]
    assert len(single) < len(coco["annotations"])
    for kept, original in zip(lvis["annotations"], single, strict=True):
        assert kept == {key: value for key, value in original.items() if key != "iscrowd"}
    assert len(lvis["images"]) == len(coco["images"])
    for image in lvis["images"]:
        here = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        negative = {c["id"] for c in coco["categories"]} - {a["category_id"] for a in here}
        assert image["neg_category_ids"] == sorted(negative)
        crowds = {a["category_id"] for a in here if a["iscrowd"]}
        assert image["not_exhaustive_category_ids"] == sorted(crowds)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_metric_means_the_same(iou_type, tinycoco):
    """Without crowds, lvis-api on the converted dataset gives the AP of pycocotools."""
    coco = read_coco_json(tinycoco / "annotations/instances_train2017.json")
    crowds = {(a["image_id"], a["category_id"]) for a in coco["annotations"] if a["iscrowd"]}
    coco["annotations"] = [a for a in coco["annotations"] if not a["iscrowd"]]
    lvis = coco_to_lvis(coco)
    reference = COCO()
    reference.dataset = coco
    reference.createIndex()

    rng = np.random.default_rng(0)
    category_ids = [category["id"] for category in coco["categories"]]
    detections = []
    for annotation in coco["annotations"]:  # shifted, scored, and sometimes of a wrong class
        width, height = annotation["bbox"][2:]
        dx, dy = (rng.normal(0, 0.1, 2) * [width, height]).round().astype(int).tolist()
        mask = np.roll(reference.annToMask(annotation), (dy, dx), (0, 1))
        rle = mask_utils.encode(np.asfortranarray(mask))
        category_id = annotation["category_id"]
        if rng.random() < 0.2:
            category_id = int(rng.choice(category_ids))
        detection = {
            "image_id": annotation["image_id"],
            "category_id": category_id,
            "score": float(rng.uniform()),
        }
        shape = {"bbox": mask_utils.toBbox(rle).tolist()} if iou_type == "bbox" else {}
        if (annotation["image_id"], category_id) not in crowds:
            detections.append(detection | (shape or {"segmentation": rle}))

    theirs = COCOeval(reference, reference.loadRes(copy.deepcopy(detections)), iou_type)
    theirs.params.maxDets = [1, 10, 300]
    theirs.evaluate()
    theirs.accumulate()
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    ap = precision[precision > -1].mean()
    assert 0.1 < ap < 0.9
    evaluation = evaluate(
        GroundTruth.from_dataset(lvis), Detections.from_records(detections), iou_type, engine="lvis"
    )
    assert evaluation.metrics()["AP"] == pytest.approx(ap, abs=1e-9)
