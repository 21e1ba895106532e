import json

import numpy as np
import pytest
from detectron2.utils.logger import _LOG_COUNTER

from apa_det.data import coco_to_lvis
from apa_det.errors import MissingFileError, UserError
from apa_det.evaluation import (
    Detections,
    FrequencyGroups,
    GroundTruth,
    evaluate,
)

BOX = [10.0, 10.0, 40.0, 40.0]


def lvis():
    """A dataset with unordered ids, an annotation without area, and one to ignore."""
    return {
        "images": [
            {
                "id": i,
                "height": 100,
                "width": 120,
                "neg_category_ids": negatives,
                "not_exhaustive_category_ids": [8] if i == 40 else [],
            }
            for i, negatives in ((40, [8, 999]), (7, []))
        ],
        "categories": [
            {"id": 8, "name": "owl", "image_count": 200, "frequency": "f"},
            {"id": 2, "name": "cat", "image_count": 3},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 8, "bbox": BOX, "area": 1600},
            {"id": 4, "image_id": 40, "category_id": 2, "bbox": BOX, "area": 0},
            {"id": 6, "image_id": 40, "category_id": 2, "bbox": BOX, "area": 9, "ignore": 1},
        ],
    }


def test_columns():
    dataset = lvis()
    before = json.dumps(dataset)
    truth = GroundTruth.from_dataset(dataset)
    assert json.dumps(dataset) == before
    assert truth.image_ids.tolist() == [7, 40] and truth.images[1] is dataset["images"][0]
    assert truth.image_sizes.tolist() == [[100, 120]] * 2
    assert truth.category_ids.tolist() == [2, 8] and truth.category_names == ["cat", "owl"]
    assert truth.image_counts.tolist() == [3, 200]
    assert truth.category_groups.tolist() == [0, 2]
    assert truth.annotation_ids.tolist() == [5, 4, 6]
    assert truth.annotation_images.tolist() == [0, 1, 1]
    assert truth.annotation_categories.tolist() == [1, 0, 0]
    assert truth.boxes.tolist() == [BOX] * 3 and truth.areas.tolist() == [1600, 0, 9]
    assert truth.ignore.tolist() == [False, False, True]
    assert truth.counted.tolist() == [True, False, False]
    assert not truth.has_masks
    # (7, owl) and (40, cat) are annotated, (40, owl) is a negative; 999 is not a category.
    assert truth.verified.tolist() == [1, 2, 3]
    assert truth.not_exhaustive.tolist() == [3]


def test_restricted_to():
    part = GroundTruth.from_dataset(lvis()).restricted_to(np.array([40]))
    assert part.image_ids.tolist() == [40] and [image["id"] for image in part.images] == [40]
    assert part.annotation_ids.tolist() == [4, 6] and part.annotation_images.tolist() == [0, 0]
    assert part.verified.tolist() == [0, 1] and part.not_exhaustive.tolist() == [1]
    assert part.image_counts.tolist() == [3, 200]


def coco():
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (1, 2)],
        "categories": [{"id": i, "name": f"c{i}"} for i in (1, 2, 3)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": BOX, "area": 1600, "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": BOX, "area": 1600, "iscrowd": 0},
        ],
    }


def detections_of(*rows):
    keys = ("image_id", "category_id", "bbox", "score")
    return Detections.from_records([dict(zip(keys, row, strict=True)) for row in rows])


@pytest.mark.parametrize("engine", ["fast", "lvis"])
def test_coco_format_equals_its_conversion(engine):
    detections = detections_of(
        (1, 1, BOX, 0.7),
        (2, 1, BOX, 0.8),  # a false positive: all categories are verified in COCO images
        (1, 2, BOX, 0.9),  # ignored: a crowd
        (2, 2, BOX, 0.6),
    )
    direct = GroundTruth.from_dataset(coco())
    assert direct.verified is None
    converted = GroundTruth.from_dataset(coco_to_lvis(coco()))
    metrics = evaluate(direct, detections, engine=engine).metrics()
    assert metrics == pytest.approx(
        evaluate(converted, detections, engine=engine).metrics(), nan_ok=True
    )
    assert metrics["APr"] == pytest.approx((0.5 + 1) / 2)


def test_crowds_are_said_once(caplog):
    _LOG_COUNTER.clear()
    truths = [GroundTruth.from_dataset(coco()) for _ in range(2)]
    assert caplog.text.count("1 crowd region of COCO: by LVIS's rules") == 1
    assert truths[0].num_crowds == truths[0].restricted_to(np.array([1])).num_crowds == 1
    assert "so pycocotools gives another AP" in truths[0].crowd_note()
    converted = GroundTruth.from_dataset(coco_to_lvis(coco()))
    assert converted.num_crowds == 0 and not converted.crowd_note()


def test_count_from(tmp_path, caplog):
    train = coco()
    train["images"] = [{**train["images"][0], "id": i} for i in range(50)]
    train["annotations"] = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "area": 1600} for i in range(50)
    ]
    for name, content in (("train", train), ("val", coco())):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    val, counts = tmp_path / "val.json", tmp_path / "train.json"

    truth = GroundTruth.from_file(val, count_from=counts)
    assert truth.image_counts.tolist() == [50, 0, 0]
    assert truth.category_groups.tolist() == [1, 0, 0]
    groups = FrequencyGroups.parse("few:20,many")
    assert GroundTruth.from_file(val, groups, count_from=counts).category_groups.tolist() == [
        1,
        0,
        0,
    ]
    assert "neither frequency nor image_count" not in caplog.text
    assert GroundTruth.from_file(val).image_counts.tolist() == [1, 1, 0]
    assert "neither frequency nor image_count" in caplog.text


def test_invalid_files(tmp_path):
    (tmp_path / "coco.json").write_text(json.dumps({**coco(), "annotations": [{"id": 1}]}))
    with pytest.raises(UserError, match="coco.json: annotation 1: image_id is missing"):
        GroundTruth.from_file(tmp_path / "coco.json")
    with pytest.raises(MissingFileError):
        GroundTruth.from_file(tmp_path / "nowhere.json")
