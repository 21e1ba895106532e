"""COCO files as CVAT and LabelMe export them."""

import json

import pytest

from apa_det_cli import main


@pytest.fixture
def cvat():
    """A polygon, a box without mask, and a mask of the brush, which CVAT marks as a crowd."""
    common = {"image_id": 1, "attributes": {"occluded": False, "rotation": 0.0}, "iscrowd": 0}
    image = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "version": ""},
        "categories": [
            {"id": i, "name": name, "supercategory": ""} for i, name in ((1, "cat"), (2, "dog"))
        ],
        "images": [image | {"id": 1, "width": 6, "height": 4, "file_name": "a.png"}],
        "annotations": [
            common
            | {
                "id": 1,
                "category_id": 1,
                "segmentation": [[0.0, 0.0, 4.0, 0.0, 4.0, 2.0, 0.0, 2.0]],
                "area": 8.0,
                "bbox": [0.0, 0.0, 4.0, 2.0],
            },
            common
            | {
                "id": 2,
                "category_id": 1,
                "segmentation": [],
                "area": 4.0,
                "bbox": [2.0, 2.0, 2.0, 2.0],
            },
            common
            | {
                "id": 3,
                "category_id": 2,
                "segmentation": {"counts": [2, 2, 20], "size": [4, 6]},
                "area": 2.0,
                "bbox": [0.0, 2.0, 0.0, 1.0],
                "iscrowd": 1,
            },
        ],
    }


def run(dataset, save, tmp_path):
    source = save("instances_default.json", json.dumps(dataset))
    output = tmp_path / "lvis.json"
    flags = ["--output", str(output)]
    assert main(["prepare-dataset", "coco-to-lvis", str(source), *flags]) == 0
    save("a.png", (6, 4))
    assert main(["prepare-dataset", "check", str(output), str(tmp_path)]) == 0
    return json.loads(output.read_text())


def test_cvat_with_masks(cvat, save, tmp_path):
    lvis = run(cvat, save, tmp_path)
    (cat,) = lvis["annotations"]
    assert cat["attributes"] == {"occluded": False, "rotation": 0.0} and "iscrowd" not in cat
    (image,) = lvis["images"]
    assert (image["neg_category_ids"], image["not_exhaustive_category_ids"]) == ([], [1, 2])
    assert lvis["info"]["coco_to_lvis"]["crowds"] == lvis["info"]["coco_to_lvis"]["unusable"] == 1


def test_mostly_boxes(cvat, save, tmp_path, capsys):
    """A single mask among boxes makes it a dataset of masks: the output says how to go on."""
    cvat["annotations"] = [cvat["annotations"][0]] + [
        cvat["annotations"][1] | {"id": i} for i in (2, 4)
    ]
    assert len(run(cvat, save, tmp_path)["annotations"]) == 1
    out = capsys.readouterr().out
    assert "Dropped: 0 crowds, 2 without a usable box or mask" in out
    assert "Most annotations are dropped: to train on boxes alone, remove all masks" in out


def test_cvat_boxes(cvat, save, tmp_path):
    """A dataset without any polygon keeps its boxes."""
    cvat["annotations"] = [a | {"segmentation": [], "iscrowd": 0} for a in cvat["annotations"][:2]]
    lvis = run(cvat, save, tmp_path)
    assert [a["id"] for a in lvis["annotations"]] == [1, 2]
    assert lvis["images"][0]["neg_category_ids"] == [2]


def test_labelme(cvat, save, tmp_path):
    """Ids from 0, a background class, and no supercategory."""
    names = ("_background_", "cat")
    cvat["categories"] = [
        {"supercategory": None, "id": i, "name": name} for i, name in enumerate(names)
    ]
    cvat["images"][0] = {"license": 0, "url": None, "file_name": "a.png", "height": 4, "width": 6}
    cvat["images"][0] |= {"date_captured": None, "id": 0}
    cvat["annotations"] = [cvat["annotations"][0] | {"id": 0, "image_id": 0}]
    lvis = run(cvat, save, tmp_path)
    assert lvis["images"][0]["neg_category_ids"] == [0]
    assert [c["image_count"] for c in lvis["categories"]] == [0, 1]
