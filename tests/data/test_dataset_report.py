"""The dataset check: all problems at once, and hand-worked statistics."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from apa_det.data import check_dataset
from apa_det.data.dataset_report import GroupCounts
from apa_det.utils.json_files import read_json, write_json


def test_coco_format(tinycoco):
    """One problem, and one note of the crowd regions."""
    images = tinycoco / "images/val2017"
    report = check_dataset(tinycoco / "annotations/instances_val2017.json", images)
    (problem,) = report.problems
    assert problem.kind == "not in LVIS format" and "coco-to-lvis" in problem.message
    (note,) = report.notes
    assert "1 crowd region of COCO" in note and "pycocotools gives another AP" in note
    assert report.total().instances == report.num_annotations - 1 == 135


def test_valid_dataset(small, write):
    path = write(small)
    report = check_dataset(path, path.parent, rare_max=0, common_max=1)
    assert report.problems == []
    assert (report.num_images, report.num_empty_images, report.num_annotations) == (2, 0, 3)
    assert report.groups == {
        "f": GroupCounts(classes=1, unseen=0, images=2, instances=2),
        "c": GroupCounts(classes=1, unseen=0, images=1, instances=1),
        "r": GroupCounts(classes=1, unseen=1, images=0, instances=0),
    }
    lines = [line.split() for line in str(report).splitlines()]
    assert ["frequent", "1", "0", "2", "2"] in lines
    groups = [
        line[0] for line in lines if line and line[0] in ("rare", "common", "frequent", "all")
    ]
    assert groups == ["rare", "common", "frequent", "all"]
    assert ["all", "3", "1", "2", "3"] in lines
    assert lines[-1] == ["Problems:", "0"]


def test_real_lvis(lvis_val_100):
    report = check_dataset(lvis_val_100, "nowhere")
    assert Counter(p.kind for p in report.problems) == {"missing image file": 100}
    assert sum(counts.instances for counts in report.groups.values()) == 977
    assert sum(counts.classes for counts in report.groups.values()) == 1230
    text = str(report)
    assert text.count(": there is no image nowhere") == 10 and "... and 90 more" in text


def test_all_problems_at_once(small, write):
    path = write(small)
    image, other = small["images"]
    square = small["annotations"][0]
    more = [
        {"bbox": [1, 2, 0, 5]},
        {"bbox": [25, 2, 10, 5]},
        {"bbox": [-3, 2, 10, 5]},
        {"area": 0},
        {"segmentation": [[1, 2, 3, 4, 5, "6"]]},
        {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]},
        {"category_id": 5},
        {"image_id": None},
        {"id": 11},
    ]
    for i, fault in enumerate(more):
        small["annotations"].append(square | {"id": 100 + i} | fault)
    image["neg_category_ids"] = [90, 4, 1000]
    other["not_exhaustive_category_ids"] = [21, "dog"]
    small["images"] += [
        other | {"id": 8, "file_name": "gone.png", "not_exhaustive_category_ids": []},
        other | {"id": 9, "file_name": "text.png", "not_exhaustive_category_ids": []},
        other | {"id": 10, "height": 21, "not_exhaustive_category_ids": []},
        {"id": 12},
    ]
    small["categories"][0]["frequency"] = "often"
    write_json(small, path)
    (path.parent / "text.png").write_text("not an image")

    report = check_dataset(path, path.parent)
    assert Counter(problem.kind for problem in report.problems) == {
        "empty box": 1,
        "box outside its image": 2,
        "empty mask": 1,
        "annotation without valid segmentation": 2,
        "annotation without valid category_id": 1,
        "annotation without valid image_id": 1,
        "duplicate annotation id": 1,
        "unknown category in neg_category_ids": 1,
        "image without valid not_exhaustive_category_ids": 2,
        "annotated category in neg_category_ids": 1,
        "missing image file": 1,
        "unreadable image file": 1,
        "wrong image size": 1,
        "image without valid height": 1,
        "image without valid file_name": 1,
        "image without valid neg_category_ids": 1,
        "category without valid frequency": 1,
    }
    messages = "\n".join(problem.message for problem in report.problems)
    records = {p.kind: p.record for p in report.problems}
    assert records["empty box"] == ("annotations", 3)
    assert records["annotated category in neg_category_ids"] == ("images", 0)
    assert "image 7 has [1000] in neg_category_ids" in messages
    assert "image 7 has instances of [4]" in messages
    assert (
        "image 3: not_exhaustive_category_ids must be a list of category ids, got [21, 'dog']"
        in (messages)
    )
    assert "annotation 101 has the bbox [25, 2, 10, 5] in an image of 30 x 20" in messages
    assert "is 30 x 20, but annotated as 30 x 21" in messages
    assert (report.num_images, report.num_annotations) == (6, 12)
    assert str(report).endswith("Problems: 20")


@pytest.mark.parametrize("content", [[], {}, {"images": 1}, {"images": [1], "annotations": []}])
def test_not_a_dataset(content, tmp_path):
    write_json(content, tmp_path / "x.json")
    assert check_dataset(tmp_path / "x.json", tmp_path).problems


def test_exif_rotation(small, write):
    """The size is that after the rotation, as in detectron2."""
    path = write(small)
    for image, size in zip(small["images"], ((20, 30), (30, 20)), strict=True):
        image["file_name"] = image["file_name"].replace("png", "jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", size).save(path.parent / image["file_name"], exif=exif)
    write_json(small, path)
    report = check_dataset(path, path.parent)
    (problem,) = report.problems
    assert problem.kind == "wrong image size"
    assert "a.jpg is 20 x 30, but annotated as 30 x 20: its EXIF data rotate it" in problem.message
    assert "2 images are rotated or flipped by their EXIF data" in str(report)


def test_image_files_are_decoded(small, write):
    path = write(small)
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "jpeg")
    (path.parent / "a.png").write_bytes(buffer.getvalue()[:-200])
    small["images"].append(
        {"id": 8, "file_name": "text.png", "height": 20}  # the file is checked nevertheless
    )
    (path.parent / "text.png").write_text("not an image")
    write_json(small, path)
    found = {(p.kind, p.record) for p in check_dataset(path, path.parent).problems}
    assert found >= {
        ("unreadable image file", ("images", 1)),
        ("unreadable image file", ("images", 2)),
        ("image without valid width", ("images", 2)),
    }


@pytest.mark.parametrize(
    "box, text",
    [
        ([10, 10, 28, 18], "3 of 3 boxes reach beyond their image: are they corners"),
        ([0.1, 0.1, 0.5, 0.5], "3 of 3 boxes are smaller than a pixel: are they scaled to 0...1?"),
    ],
)
def test_boxes_in_another_format(box, text, small, write):
    for annotation in small["annotations"]:
        annotation["bbox"] = box
    path = write(small)
    (problem,) = [
        p for p in check_dataset(path, path.parent).problems if p.kind == "boxes in another format"
    ]
    assert problem.message.startswith(text)


def test_json_report(small, write, tmp_path, tool):
    path = write(small)
    small["annotations"][1]["area"] = "30"
    write_json(small, path)
    arguments = ("prepare_dataset", "check", path, path.parent, "--json", tmp_path / "report.json")
    assert tool(*arguments) == 1
    report = read_json(tmp_path / "report.json")
    assert report == check_dataset(path, path.parent).summary()
    assert (report["images"], report["annotations"]) == (2, 3)
    assert report["groups"]["r"] == {"classes": 3, "unseen": 2, "images": 2, "instances": 2}
    (problem,) = report["problems"]
    assert (problem["kind"], problem["table"], problem["index"]) == (
        "annotation without valid area",
        "annotations",
        1,
    )
    assert problem["message"].startswith("annotation 12: area must be")
