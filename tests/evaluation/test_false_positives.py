"""The false positives with the highest scores: which are chosen, and what they are about."""

import pytest

from apa_det.evaluation import Detections, FrequencyGroups, GroundTruth, evaluate
from apa_det.evaluation.error_types import find_errors
from apa_det.evaluation.false_positives import worst_false_positives

BOX, FAR = [10, 10, 40, 40], [100, 100, 20, 20]


@pytest.fixture
def truth():
    """Category 3 has an object in both images; 1 and 2 are group r, 3 is group f, 4 has none."""
    return GroundTruth(
        {
            "images": [{"id": i, "width": 200, "height": 200} for i in (1, 2)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 3, "bbox": BOX, "area": 1600}
                for i in (1, 2)
            ],
            "categories": [{"id": i, "name": f"c{i}", "image_count": i} for i in (1, 2, 3, 4)],
        },
        FrequencyGroups.from_mapping({1: "r", 2: "r", 3: "f"}),
        everything_verified=True,
    )


def worst(truth, results, number):
    keys = ("image_id", "category_id", "score", "bbox")
    records = [dict(zip(keys, values, strict=True)) for values in results]
    detections = Detections.from_records(records)
    evaluation = evaluate(truth, detections, "bbox", matches=True)
    errors = find_errors(evaluation, detections)
    return worst_false_positives(evaluation, errors, detections, number)


def test_other_categories_and_images_come_first(truth):
    results = [
        (1, 1, 0.9, FAR),
        (1, 1, 0.8, FAR),
        (2, 1, 0.7, FAR),
        (1, 2, 0.6, FAR),
        (2, 2, 0.5, BOX),
        (1, 3, 0.95, BOX),  # true positive
        (1, 3, 0.4, [12, 10, 40, 40]),
        (1, 4, 0.99, FAR),  # no group
    ]
    found = worst(truth, results, 2)
    assert [(f.category + 1, f.record["id"], round(f.score, 2), f.error) for f in found] == [
        (1, 1, 0.9, "background"),
        (2, 2, 0.5, "class"),
        (3, 1, 0.4, "duplicate"),
    ]
    assert [f.annotation for f in found] == [-1, 1, 0]
    assert found[1].iou == 1 and found[1].box == tuple(BOX)
    scores = [round(f.score, 2) for f in worst(truth, results, 4)]
    assert scores == [0.9, 0.8, 0.7, 0.5, 0.4]  # filled up with others
    assert worst(truth, results[5:6], 4) == []
