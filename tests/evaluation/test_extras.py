import logging

import numpy as np
import pytest
from lvis import LVISEval
from lvis.eval import Params

from apa_det.evaluation import Detections, GroundTruth, evaluate, fixed_ap, pooled_ap
from apa_det.evaluation.lvis_engine import _with_np_float

BOX, FAR = [10, 10, 40, 40], [55, 55, 40, 40]


def dataset(annotations, negatives=()):
    return {
        "images": [
            {
                "id": 1,
                "height": 100,
                "width": 100,
                "neg_category_ids": list(negatives),
                "not_exhaustive_category_ids": [],
            }
        ],
        "categories": [{"id": i, "frequency": f, "image_count": 1} for i, f in enumerate("rfc", 1)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "bbox": box, "area": 1600}
            for i, (c, box) in enumerate(annotations)
        ],
    }


def detections_of(*rows):
    """Build detections from (category_id, bbox, score)."""
    return Detections.from_records(
        [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in rows]
    )


def test_fixed_ap_has_no_limit_per_image(caplog):
    truth = GroundTruth.from_dataset(dataset([(1, BOX), (2, BOX)]))
    crowd = [(2, FAR, 0.9)] * 300
    detections = detections_of(*crowd, (2, BOX, 0.95), (1, BOX, 0.1))
    assert evaluate(truth, detections).metrics()["APr"] == 0
    with caplog.at_level("INFO"):
        fixed = fixed_ap(truth, detections)
    assert fixed == pytest.approx(
        {"AP_fixed": 1, "APr_fixed": 1, "APf_fixed": 1, "APc_fixed": float("nan")}, nan_ok=True
    )
    assert caplog.text == ""  # a single image shows no limit
    # Of the frequent category only two false positives are evaluated.
    assert (
        fixed_ap(truth, detections_of(*crowd, (2, BOX, 0.1)), max_dets_per_category=2)["APf_fixed"]
        == 0
    )


def test_note_of_a_limit_per_image(caplog):
    """AP-fixed is too low only if the detector has cut off detections; it is logged once."""
    content = dataset([(1, BOX)])
    content["images"] = [{**content["images"][0], "id": i} for i in range(1, 41)]
    truth = GroundTruth.from_dataset(content)

    def fixed_ap_of(numbers):
        rows = [{"image_id": i, "category_id": 1, "bbox": BOX} for i in range(1, 41)]
        numbers = zip(rows, numbers, strict=True)
        records = [{**row, "score": 0.5} for row, number in numbers for _ in range(number)]
        for iou_type in ("bbox", "bbox"):
            fixed_ap(truth, Detections.from_records(records), iou_type)
        return caplog.messages

    caplog.set_level(logging.INFO)
    assert fixed_ap_of([*range(1, 41)]) == []  # as many as exceed the score threshold
    (note,) = fixed_ap_of([31] * 20 + [7] * 20)
    assert "many images have exactly 31 detections" in note and "up to 10,000" in note
    assert fixed_ap_of([0] * 40) == [note]


def test_pooled_ap_worked_by_hand():
    """A false positive of one category ranks above the true positive of the other."""
    truth = GroundTruth.from_dataset(dataset([(1, BOX), (2, BOX)], negatives=[3]))
    detections = detections_of((2, FAR, 0.9), (1, BOX, 0.8), (2, BOX, 0.7), (3, BOX, 0.6))
    # Pooled by score: false, true, true, false positive. Precision is 2/3 up to recall 1.
    assert pooled_ap(truth, detections) == pytest.approx(
        {"AP_pool": 2 / 3, "APr_pool": 1, "APf_pool": 1 / 2, "APc_pool": float("nan")}, nan_ok=True
    )
    assert evaluate(truth, detections).metrics()["AP"] == pytest.approx((1 + 1 / 2) / 2)
    nothing = pooled_ap(truth, detections_of())
    assert nothing["AP_pool"] == nothing["APr_pool"] == 0


@pytest.mark.parametrize("engine", ["fast", "lvis"])
def test_pooled_ap_has_no_limit_per_image(engine):
    """Behind 400 false positives in the only image, a true positive of the other category."""
    truth = GroundTruth.from_dataset(dataset([(1, BOX), (2, BOX)]))
    crowd = [(2, FAR, 0.9)] * 400
    detections = detections_of((2, BOX, 0.95), *crowd, (1, BOX, 0.1))
    assert evaluate(truth, detections).metrics()["APr"] == 0
    # Precision is 1 up to recall 1/2 (51 of 101 recalls), then 2 of 402.
    expected = {"AP_pool": (51 + 50 * 2 / 402) / 101, "APr_pool": 1, "APf_pool": 1}
    pooled = pooled_ap(truth, detections, engine=engine)
    assert {name: pooled[name] for name in expected} == pytest.approx(expected)
    # The best two of each category: precision 2 of 3 beyond recall 1/2.
    limited = pooled_ap(truth, detections, engine=engine, max_dets_per_category=2)
    assert limited["AP_pool"] == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("engine", ["fast", "lvis"])
def test_pooled_ap_equals_lvis_api_with_categories_merged_after_matching(engine, lvis_val_100):
    truth = GroundTruth.from_file(lvis_val_100)
    rng = np.random.default_rng(0)
    number = 500
    rows = rng.integers(len(truth.boxes), size=number)
    detections = Detections(
        truth.image_ids[truth.annotation_images[rows]],
        truth.category_ids[truth.annotation_categories[rows]],
        rng.random(number),
        truth.boxes[rows] * rng.uniform(0.85, 1.15, (number, 4)),
    )
    evaluation = evaluate(truth, detections, engine=engine, max_dets=None, matches=True)
    expected = _accumulated_by_lvis_api(evaluation)
    pooled = pooled_ap(truth, detections, engine=engine)
    assert pooled["AP_pool"] == pytest.approx(expected, abs=1e-12)


def _accumulated_by_lvis_api(evaluation):
    matches, truth = evaluation.matches, evaluation.ground_truth
    run = LVISEval.__new__(LVISEval)
    run.logger, run.params = logging.getLogger(), Params("bbox")
    run.params.cat_ids, run.params.img_ids = [1], [1]
    run.params.area_rng = run.params.area_rng[:1]
    run.eval_imgs = [
        {
            "dt_scores": evaluation.scores,
            "dt_ids": np.arange(len(evaluation.scores)),
            "dt_matches": (matches.outcomes == 1).T,
            "dt_ignore": (matches.outcomes == 2).T,
            "gt_ignore": ~truth.counted,
        }
    ]
    _with_np_float(LVISEval.accumulate)(run)
    return run.eval["precision"].mean()
