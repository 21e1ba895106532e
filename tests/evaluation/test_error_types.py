"""Types of errors: against tidecv, and hand-worked cases of LVIS's rules."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from apa_det.evaluation import Detections, FrequencyGroups, GroundTruth, evaluate
from apa_det.evaluation import error_types as module
from apa_det.evaluation.error_types import (
    BACKGROUND,
    BOTH,
    CLASS,
    DUPLICATE,
    LOCATION,
    NO_ERROR,
    OTHER,
    find_errors,
    summarize_errors,
)

TIDE_NAMES = {
    "Cls": "class",
    "Loc": "location",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FalsePos": "false positives",
    "FalseNeg": "false negatives",
}
# of tidecv 1.0.1 for coco_style(0): AP, gains, and counts
STORED_AP = 24.693831859713715
STORED_GAINS = {
    "class": 3.3359675107804954,
    "location": 17.593569539683468,
    "both": 3.1808315824395947,
    "duplicate": 0.8618137443996758,
    "background": 4.178447526127808,
    "missed": 7.680006260357256,
    "false positives": 32.731910714543716,
    "false negatives": 16.303181000271824,
}
STORED_COUNTS = {
    "class": 20,
    "location": 47,
    "both": 30,
    "duplicate": 17,
    "background": 31,
    "missed": 22,
}


def coco_style(seed, num_images=30, num_classes=5):
    """Return a dataset in COCO format, and results with errors of all types."""
    rng = np.random.default_rng(seed)  # random() alone: the same numbers in all NumPy releases
    annotations, results = [], []

    def category():
        return 1 + int(num_classes * rng.random())

    def box():
        return [60 * rng.random(), 60 * rng.random(), 8 + 32 * rng.random(), 8 + 32 * rng.random()]

    for image in range(1, num_images + 1):
        for _ in range(int(7 * rng.random())):
            own, bbox = category(), box()
            record = {"image_id": image, "category_id": own, "bbox": bbox, "iscrowd": 0}
            area = bbox[2] * bbox[3]
            annotations.append({**record, "id": len(annotations) + 1, "area": area})
            for _ in range(int(4 * rng.random())):
                size = (2, 10, 24)[int(3 * rng.random())]
                shifted = [value + size * (rng.random() - 0.5) for value in bbox]
                shifted[2:] = [max(2.0, side) for side in shifted[2:]]
                wrong = rng.random() < 0.3
                results.append((image, category() if wrong else own, rng.random(), shifted))
        for _ in range(int(4 * rng.random())):
            results.append((image, category(), rng.random(), box()))
    dataset = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": str(i), "image_count": 3**i} for i in range(1, num_classes + 1)
        ],
    }
    keys = ("image_id", "category_id", "score", "bbox")
    return dataset, [dict(zip(keys, result, strict=True)) for result in results]


def analyzed(dataset, results, iou_type="bbox", groups=None):
    truth = GroundTruth.from_dataset(dataset, groups)
    detections = Detections.from_records(results)
    evaluation = evaluate(truth, detections, iou_type, matches=True)
    errors = find_errors(evaluation, detections)
    return evaluation, errors, summarize_errors(evaluation, errors)


@pytest.fixture
def recalls_of_tidecv(monkeypatch):
    """tidecv rounds the 101 recalls of AP otherwise in the last bit."""
    monkeypatch.setattr(module, "RECALL_THRESHOLDS", np.arange(101) / 100)


def test_stored_results_of_tidecv(recalls_of_tidecv):
    _, _, types = analyzed(*coco_style(0))
    assert 100 * np.nanmean(types.ap50) == pytest.approx(STORED_AP)
    gains, counts = types.dap(), types.count()
    assert {n: 100 * v for n, v in gains.items()} == pytest.approx(STORED_GAINS)
    assert {n: counts[n] for n in STORED_COUNTS} == STORED_COUNTS


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_tidecv(seed, recalls_of_tidecv):
    tidecv = pytest.importorskip("tidecv")
    dataset, results = coco_style(seed)
    truth, predicted = tidecv.Data("truth"), tidecv.Data("predicted")
    for image in dataset["images"]:
        truth.add_image(image["id"], "")
    for a in dataset["annotations"]:
        truth.add_ground_truth(a["image_id"], a["category_id"], a["bbox"])
    for r in results:
        predicted.add_detection(r["image_id"], r["category_id"], r["score"], r["bbox"])
    tide = tidecv.TIDE()
    run = tide.evaluate(truth, predicted)
    expected = tide.get_main_errors()["predicted"] | tide.get_special_errors()["predicted"]
    _, _, types = analyzed(dataset, results)
    assert 100 * np.nanmean(types.ap50) == pytest.approx(run.ap)
    gains, counts = types.dap(), types.count()
    for name, value in expected.items():
        assert 100 * gains[TIDE_NAMES[name]] == pytest.approx(value)
    for error, count in run.count_errors().items():
        assert counts[TIDE_NAMES[error.short_name]] == count > 0


def federated(annotations, **image):
    """Return an LVIS-format dataset with one image; category 1 is rare, 2 and 3 are frequent."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []} | image
    return {
        "images": [{"id": 7, "width": 200, "height": 200, **lists}],
        "annotations": [
            {
                "id": i,
                "image_id": 7,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [rectangle(box)],
                **more,
            }
            for i, (category, box, more) in enumerate(annotations, 1)
        ],
        "categories": [
            {"id": i, "name": n, "image_count": c, "instance_count": c, "frequency": f}
            for i, n, c, f in ((1, "a", 5, "r"), (2, "b", 500, "f"), (3, "c", 500, "f"))
        ],
    }


def rectangle(box):
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def result(category, score, box):
    rle = mask_util.merge(mask_util.frPyObjects([rectangle(box)], 200, 200))
    mask = {"size": rle["size"], "counts": rle["counts"].decode()}
    record = {"image_id": 7, "category_id": category, "score": score}
    return {**record, "bbox": box, "segmentation": mask}


FIRST, SECOND, FAR = [10, 10, 40, 40], [100, 100, 40, 40], [160, 10, 20, 20]
OBJECTS = [(1, FIRST, {}), (2, SECOND, {})]
RESULTS = [
    result(2, 0.9, SECOND),  # true positive
    result(2, 0.8, [102, 100, 40, 40]),  # duplicate
    result(2, 0.7, [10, 12, 40, 40]),  # on the object of category 1
    result(1, 0.6, [35, 10, 40, 40]),  # IoU 15/65
    result(1, 0.5, [80, 100, 30, 40]),  # IoU 10/60 with the object of category 2
    result(1, 0.4, FAR),
    result(3, 0.3, FIRST),  # not verified
]
KINDS = {0.9: NO_ERROR, 0.8: DUPLICATE, 0.7: CLASS, 0.6: LOCATION, 0.5: BOTH, 0.4: BACKGROUND}


def kinds_by_score(evaluation, errors):
    return dict(zip(evaluation.scores.round(2).tolist(), errors.kinds.tolist(), strict=True))


def test_types_by_hand():
    evaluation, errors, types = analyzed(federated(OBJECTS), RESULTS)
    assert kinds_by_score(evaluation, errors) == KINDS
    about = dict(zip(evaluation.scores.round(2).tolist(), errors.annotations, strict=True))
    assert about == {0.9: -1, 0.8: 1, 0.7: 0, 0.6: 0, 0.5: 1, 0.4: -1}
    assert not errors.missed.any()  # the class error is about the object of category 1
    # Fixed, that detection is the first of category 1: AP 1. The location error comes second there.
    assert types.dap("r") == pytest.approx(
        {
            "class": 1.0,
            "location": 0.0,
            "both": 0.0,
            "duplicate": 0.0,
            "background": 0.0,
            "missed": 0.0,
            "false positives": 0.0,
            "false negatives": 0.0,
        }
    )
    assert np.nanmean(types.ap50) == pytest.approx(evaluation.metrics()["AP50"])
    assert types.count("f")["class"] == 1 and types.count("r")["class"] == 0
    assert types.count()["false positives"] == 5 and types.count()["false negatives"] == 1
    assert np.isnan(types.ap50[2]) and np.isnan(types.dap("c")["class"])


def test_federated_rules():
    """Negative: judged. Not exhaustive, not verified, matched to an ignored annotation: not."""
    evaluation, errors, _ = analyzed(federated(OBJECTS, neg_category_ids=[3]), RESULTS)
    assert kinds_by_score(evaluation, errors) == KINDS | {0.3: CLASS}
    partial = federated(OBJECTS, neg_category_ids=[3], not_exhaustive_category_ids=[2])
    evaluation, errors, types = analyzed(partial, RESULTS)
    assert kinds_by_score(evaluation, errors) == KINDS | {0.3: CLASS, 0.8: NO_ERROR, 0.7: NO_ERROR}
    assert types.count("f")["false positives"] == 1
    ignored = federated([(1, FIRST, {"ignore": 1}), (2, SECOND, {})])
    evaluation, errors, types = analyzed(ignored, [*RESULTS, result(1, 0.2, FIRST)])
    kinds = kinds_by_score(evaluation, errors)
    assert kinds[0.2] == NO_ERROR and kinds[0.7] == kinds[0.6] == BACKGROUND
    assert types.count("r")["false negatives"] == 0


def test_crowds_of_coco():
    """Unmatched detections of a crowd's category are no errors in that image."""
    dataset = federated(OBJECTS)
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        del dataset["images"][0][key]
    evaluation, errors, _ = analyzed(dataset, RESULTS)
    assert kinds_by_score(evaluation, errors) == KINDS | {0.3: CLASS}
    crowd = {**dataset["annotations"][0], "id": 3, "bbox": FAR, "iscrowd": 1}
    evaluation, errors, types = analyzed(
        {**dataset, "annotations": [*dataset["annotations"], crowd]}, RESULTS
    )
    kinds = kinds_by_score(evaluation, errors)
    assert kinds[0.6] == kinds[0.5] == kinds[0.4] == NO_ERROR and kinds[0.8] == DUPLICATE
    assert types.count("r")["false positives"] == 0


def test_masks_within_the_category():
    evaluation, errors, types = analyzed(federated(OBJECTS), RESULTS, "segm")
    others = dict.fromkeys((0.7, 0.5, 0.4), OTHER)
    assert kinds_by_score(evaluation, errors) == KINDS | others
    assert list(types.counts) == [
        "location",
        "duplicate",
        "other",
        "missed",
        "false positives",
        "false negatives",
    ]
    # Location fixed: a true positive at rank 1 of category 1, after no other.
    assert types.dap("r")["location"] == pytest.approx(1.0)
    assert types.count()["missed"] == 0
    with pytest.raises(ValueError, match="bbox or segm, got 'boundary'"):
        find_errors(
            evaluate(
                evaluation.ground_truth, Detections.from_records(RESULTS), "boundary", matches=True
            ),
            Detections.from_records(RESULTS),
        )


def test_missed_and_no_detections():
    _, errors, types = analyzed(federated(OBJECTS), RESULTS[:2])
    assert errors.missed.tolist() == [True, False]
    assert types.count("r")["missed"] == 1
    assert types.dap("r")["missed"] == 0  # no true positive to count
    _, errors, types = analyzed(federated(OBJECTS), [])
    assert errors.missed.all() and set(types.dap().values()) == {0.0}


def test_groups_of_custom_names():
    dataset, results = coco_style(1)
    groups = FrequencyGroups.from_thresholds([("few", 30), ("many", None)])
    _, _, types = analyzed(dataset, results, groups=groups)
    few, many, every = (types.count(group) for group in ("few", "many", None))
    assert {n: few[n] + many[n] for n in every} == every
    parts = [types.dap(g)["class"] * n for g, n in (("few", 3), ("many", 2))]
    assert sum(parts) / 5 == pytest.approx(types.dap()["class"])
