import math

import numpy as np
import pytest

from apa_det.evaluation import Detections, FrequencyGroups, GroundTruth, evaluate, metric_names

BOX, NEAR, FAR = [10, 10, 40, 40], [10, 10, 40, 50], [55, 55, 40, 40]  # IoU of BOX, NEAR: 0.8
HALF = 51 / 101  # AP if recall stops at one half


@pytest.fixture(scope="module")
def evaluation():
    """Detected: category 1; 2 in one of two images; 3 at IoU 0.8. 4 has no object and no group."""
    objects = [(1, 1, BOX), (1, 2, BOX), (2, 2, BOX), (1, 3, BOX)]
    dataset = {
        "images": [
            {
                "id": i,
                "height": 100,
                "width": 100,
                "neg_category_ids": [4] if i == 2 else [],
                "not_exhaustive_category_ids": [2] if i == 2 else [],
            }
            for i in (1, 2)
        ],
        "categories": [{"id": i, "name": f"c{i}", "image_count": 10 * i} for i in (1, 2, 3, 4)],
        "annotations": [
            {"id": i + 70, "image_id": m, "category_id": c, "bbox": box, "area": 1600}
            for i, (m, c, box) in enumerate(objects)
        ],
    }
    groups = FrequencyGroups.from_mapping({"c1": "tail", "c2": "tail", "c3": "head"})
    rows = [
        (1, 1, BOX, 0.9),
        (1, 2, BOX, 0.8),
        (1, 2, FAR, 0.7),
        (2, 2, FAR, 0.6),  # ignored: not exhaustive
        (1, 3, NEAR, 0.5),
        (2, 3, BOX, 0.4),  # not verified in image 2
        (2, 4, BOX, 0.3),
    ]
    keys = ("image_id", "category_id", "bbox", "score")
    detections = Detections.from_records([dict(zip(keys, d, strict=True)) for d in rows])
    return evaluate(GroundTruth.from_dataset(dataset, groups), detections, matches=True)


def test_metrics_of_custom_groups(evaluation):
    metrics = evaluation.metrics()
    assert list(metrics)[:8] == list(metric_names(("tail", "head")))
    assert list(metrics)[8:] == ["AR@300", "ARs@300", "ARm@300", "ARl@300"]
    third = 0.7  # IoU 0.8 is enough at 7 of 10 thresholds
    assert metrics["APtail"] == pytest.approx((1 + HALF) / 2)
    assert metrics["APhead"] == pytest.approx(third)
    assert metrics["AP"] == metrics["APm"] == pytest.approx((1 + HALF + third) / 3)
    assert metrics["AP50"] == pytest.approx((1 + HALF + 1) / 3)
    assert metrics["AR@300"] == pytest.approx((1 + 0.5 + third) / 3)
    assert math.isnan(metrics["APs"])
    recall = evaluation.group_recall()
    assert recall == {"ARtail@300": pytest.approx(0.75), "ARhead@300": pytest.approx(third)}


def test_categories(evaluation):
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert evaluation.category_ap().tolist() == pytest.approx([1, HALF, 0.7, math.nan], nan_ok=True)
    assert evaluation.category_ap(0.9).tolist() == pytest.approx(
        [1, HALF, 0, math.nan], nan_ok=True
    )
    assert evaluation.category_recall(0.5).tolist() == pytest.approx(
        [1, 0.5, 1, math.nan], nan_ok=True
    )
    assert evaluation.categories_evaluated() == {"tail": 2, "head": 1}
    rows = evaluation.per_category()
    assert rows[1] == {
        "id": 2,
        "name": "c2",
        "group": "tail",
        "image_count": 20,
        "annotations": 2,
        "AP": pytest.approx(HALF),
        "AP50": pytest.approx(HALF),
        "AR": pytest.approx(0.5),
    }
    assert rows[3] == {**rows[3], "group": "", "annotations": 0, "AP": nan}
    with pytest.raises(ValueError, match="0.5, 0.55"):
        evaluation.category_ap(0.51)


def test_precision_of_groups(evaluation):
    tail = evaluation.group_precision("tail", 0.5)
    assert tail.shape == (101,)
    assert tail[50] == pytest.approx(1) and tail[51] == pytest.approx(0.5)
    assert evaluation.group_precision(None)[0] == pytest.approx((1 + 1 + 0.7) / 3)


def test_matches(evaluation):
    matches = evaluation.matches
    assert matches.detections.tolist() == [0, 1, 2, 4, 3, 6]
    assert matches.outcomes[:, 0].tolist() == [1, 1, 0, 1, 2, 0]
    assert matches.outcomes[:, 9].tolist() == [1, 1, 0, 0, 2, 0]
    assert matches.annotations.tolist() == [0, 1, -1, 3, -1, -1]
    assert matches.ious == pytest.approx([1, 1, 0, 0.8, 0, 0])
    assert matches.matched.tolist() == [True, True, False, True]
    assert evaluation.scores == pytest.approx([0.9, 0.8, 0.7, 0.5, 0.6, 0.3])
    assert np.array_equal(evaluation.match_categories, [0, 1, 1, 2, 1, 3])
