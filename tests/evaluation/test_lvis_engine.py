import copy
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from lvis import LVIS, LVISEval, LVISResults

from apa_det.evaluation import Detections, GroundTruth, evaluate


def lvis_api(json_file, predictions, iou_type, max_dets, monkeypatch):
    """Return lvis-api's results, computed as in its README."""
    monkeypatch.setattr(np, "float", float, raising=False)
    results = LVISResults(LVIS(str(json_file)), copy.deepcopy(predictions), max_dets=max_dets)
    run = LVISEval(LVIS(str(json_file)), results, iou_type)
    run.params.max_dets = max_dets
    run.run()
    return run.get_results()


def random_predictions(dataset, iou_type, seed=0):
    """Return each object, perturbed, once with its category and once with a random one."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    seen = [annotation["category_id"] for annotation in dataset["annotations"]]
    predictions = []
    for annotation in dataset["annotations"]:
        height, width = sizes[annotation["image_id"]]
        for category in (annotation["category_id"], rng.choice(seen)):
            prediction = {
                "image_id": annotation["image_id"],
                "category_id": int(category),
                "score": float(rng.choice([0.25, 0.5, rng.random()])),  # with ties
            }
            if iou_type == "bbox":
                box = np.array(annotation["bbox"]) * rng.uniform(0.85, 1.15, 4)
                prediction["bbox"] = box.tolist()
            else:
                scale = rng.uniform(0.9, 1.1)
                polygons = [(np.array(p) * scale).tolist() for p in annotation["segmentation"]]
                rles = mask_util.frPyObjects(polygons, height, width)
                prediction["segmentation"] = mask_util.merge(rles)
            predictions.append(prediction)
    return [predictions[i] for i in rng.permutation(len(predictions))]


@pytest.mark.parametrize("iou_type, max_dets", [("bbox", 300), ("segm", 300), ("bbox", 5)])
def test_equals_lvis_api_on_real_annotations(iou_type, max_dets, monkeypatch, lvis_val_100):
    predictions = random_predictions(json.loads(lvis_val_100.read_text()), iou_type)
    truth, detections = GroundTruth.from_file(lvis_val_100), Detections.from_records(predictions)

    evaluation = evaluate(truth, detections, iou_type, engine="lvis", max_dets=max_dets)

    assert evaluation.engine == "lvis" and not hasattr(np, "float")
    metrics = evaluation.metrics()
    expected = lvis_api(lvis_val_100, predictions, iou_type, max_dets, monkeypatch)
    assert len(metrics) == 13 and list(metrics) == list(expected)
    assert metrics == {name: float(value) for name, value in expected.items()}
    assert 0 < metrics["APc"] < 1 and 0 < metrics[f"AR@{max_dets}"] < 1


def make_dataset(annotations, images=2, frequencies="rcf", **image_fields):
    """Build a dataset of 100 x 100 images from (image_id, category_id, bbox)."""
    return {
        "images": [
            {
                "id": i,
                "height": 100,
                "width": 100,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
                **image_fields.get(f"image{i}", {}),
            }
            for i in range(1, images + 1)
        ],
        "categories": [
            {"id": i, "frequency": f, "image_count": 1} for i, f in enumerate(frequencies, 1)
        ],
        "annotations": [
            {"id": i, "image_id": m, "category_id": c, "bbox": box, "area": box[2] * box[3]}
            for i, (m, c, box) in enumerate(annotations)
        ],
    }


def metrics_of(dataset, *rows, max_dets=300):
    """Evaluate detections (image_id, category_id, bbox, score)."""
    keys = ("image_id", "category_id", "bbox", "score")
    detections = Detections.from_records([dict(zip(keys, row, strict=True)) for row in rows])
    truth = GroundTruth.from_dataset(dataset)
    return evaluate(truth, detections, engine="lvis", max_dets=max_dets).metrics()


BOX, ELSEWHERE = [10, 10, 40, 40], [55, 55, 40, 40]


def test_frequency_groups_worked_by_hand():
    """The rare object and one of two common ones are detected; the frequent one is not.

    The first annotation has id 0, which lvis-api would treat as unmatched.
    """
    truth = make_dataset([(1, 1, BOX), (1, 2, BOX), (2, 2, BOX), (1, 3, BOX)])
    metrics = metrics_of(truth, (1, 1, BOX, 0.9), (1, 2, BOX, 0.8))
    half = 51 / 101  # recall levels 0, 0.01, ..., 0.5 of 101
    assert metrics["APr"] == pytest.approx(1)
    assert metrics["APc"] == pytest.approx(half)
    assert metrics["APf"] == 0
    for name in ("AP", "AP50", "AP75", "APm"):
        assert metrics[name] == pytest.approx((1 + half) / 3)
    assert math.isnan(metrics["APs"]) and math.isnan(metrics["APl"])
    assert metrics["AR@300"] == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.parametrize(
    "fields, ap",
    [
        ({}, 1),  # not verified in image 2: the detection is ignored
        ({"neg_category_ids": [1]}, 0.5),  # verified as absent: a false positive
        ({"neg_category_ids": [1], "not_exhaustive_category_ids": [1]}, 1),  # may be present
    ],
)
def test_federated_annotation(fields, ap):
    truth = make_dataset([(1, 1, BOX)], frequencies="r", image2=fields)
    metrics = metrics_of(truth, (2, 1, BOX, 0.9), (1, 1, BOX, 0.8))
    assert metrics["APr"] == pytest.approx(ap)


def test_without_detections_the_metrics_are_zero():
    metrics = metrics_of(make_dataset([(1, 1, BOX)]))
    assert metrics["AP"] == metrics["APr"] == metrics["AR@300"] == 0
    assert math.isnan(metrics["APc"])


def test_max_dets_keeps_the_highest_scores():
    rows = (1, 1, ELSEWHERE, 0.5), (1, 1, BOX, 0.9)
    assert metrics_of(make_dataset([(1, 1, BOX)]), *rows, max_dets=1)["AP"] == pytest.approx(1)
