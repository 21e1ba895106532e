"""The dataset check: all problems at once, and hand-worked statistics."""

from collections import Counter

import pytest
from PIL import Image

from apa_det.data import check_dataset
from apa_det.data.dataset_report import GroupCounts
from apa_det.utils.json_files import write_json


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
    assert lines[-1] == ["Problems:", "0"]


def test_real_lvis(lvis_val_100):
    report = check_dataset(lvis_val_100, "nowhere")
    assert Counter(p.kind for p in report.problems) == {"missing image file": 100}
    assert sum(counts.instances for counts in report.groups.values()) == 977
    assert sum(counts.classes for counts in report.groups.values()) == 1230
    text = str(report)
    assert text.count(".jpg does not exist") == 10 and "... and 90 more" in text


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
        "invalid segmentation": 2,
        "annotation with unknown category": 1,
        "annotation with unknown image": 1,
        "duplicate annotation id": 1,
        "unknown category in neg_category_ids": 1,
        "unknown category in not_exhaustive_category_ids": 1,
        "annotated category in neg_category_ids": 1,
        "missing image file": 1,
        "unreadable image file": 1,
        "wrong image size": 1,
        "image without valid height": 1,
        "invalid frequency": 1,
    }
    messages = "\n".join(problem.message for problem in report.problems)
    assert "image 7 has [1000] in neg_category_ids" in messages
    assert "image 7 has instances of [4]" in messages
    assert "image 3 has ['dog'] in not_exhaustive_category_ids" in messages
    assert "annotation 101 has the bbox [25, 2, 10, 5] in an image of 30 x 20" in messages
    assert "is 30 x 20, but annotated as 30 x 21" in messages
    assert (report.num_images, report.num_annotations) == (6, 12)
    assert str(report).endswith("Problems: 17")


@pytest.mark.parametrize("content", [[], {}, {"images": 1}, {"images": [1], "annotations": []}])
def test_not_a_dataset(content, tmp_path):
    write_json(content, tmp_path / "x.json")
    assert check_dataset(tmp_path / "x.json", tmp_path).problems


def test_exif_rotation(small, write):
    """The size is that after the rotation, as in detectron2."""
    path = write(small)
    for image in small["images"]:
        image["file_name"] = image["file_name"].replace("png", "jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (20, 30)).save(path.parent / image["file_name"], exif=exif)
    write_json(small, path)
    assert check_dataset(path, path.parent).problems == []
