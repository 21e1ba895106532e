import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from apa_det.evaluation import Detections, GroundTruth, read_results
from apa_det.evaluation.agnostic_recall import class_agnostic_recall
from apa_det.utils.json_files import read_json


def recall_of_pycocotools(dataset, detections, iou_type, limit):
    """Return the mean over thresholds of the recall of all objects, with useCats=0."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**dataset, "annotations": []}
        truth.dataset["annotations"] = [{**a, "iscrowd": 0} for a in dataset["annotations"]]
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(list(detections.records())), iou_type)
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"][:, 0, 0, 2].mean()


def confused(detections, num_copies, rng):
    """Return copies of all detections with random classes and scores, and shifted boxes."""
    copies = [detections]
    for _ in range(num_copies):
        part = detections.select(rng.permutation(len(detections)))
        part.category_ids[:] = rng.permutation(part.category_ids)
        part.boxes[:] += rng.normal(0, 2, part.boxes.shape)
        copies.append(part)
    result = Detections.concatenate(copies)
    result.scores[:] = rng.random(len(result))  # no ties: pycocotools orders them by category
    return result


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_recall_is_that_of_pycocotools_without_categories(detections_on_synthetic, iou_type):
    dataset = read_json(detections_on_synthetic.gt)
    truth = GroundTruth.from_dataset(dataset)
    found = read_results(detections_on_synthetic.results[0], truth)
    detections = confused(found, 45, np.random.default_rng(0))
    assert np.bincount(detections.image_ids).max() > 300
    recalls = class_agnostic_recall(truth, detections, iou_type)
    if iou_type == "bbox":  # the copies have the same masks
        assert recalls["AR_agnostic@100"] < recalls["AR_agnostic@300"]
    for limit in (100, 300):
        expected = recall_of_pycocotools(dataset, detections, iou_type, limit)
        assert recalls[f"AR_agnostic@{limit}"] == pytest.approx(expected, abs=1e-12)


def test_groups_by_hand():
    """A rare object by a detection of another class at IoU 0.75, a frequent one missed."""
    boxes = [[0.0, 0.0, 40.0, 40.0], [60.0, 60.0, 20.0, 20.0], [0.0, 60.0, 20.0, 20.0]]
    dataset = {
        "images": [{"id": 1, "height": 100, "width": 100, "neg_category_ids": []}],
        "categories": [
            {"id": 1, "name": "rare", "image_count": 1, "frequency": "r"},
            {"id": 2, "name": "frequent", "image_count": 500, "frequency": "f"},
        ],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": box, "area": box[2] * box[3]}
            for i, box in enumerate(boxes[:2], 1)
        ],
    }
    dataset["annotations"].append(
        {"id": 3, "image_id": 1, "category_id": 2, "bbox": boxes[2], "area": 400.0, "ignore": 1}
    )
    ones = np.ones(2, np.int64)
    found = np.array([[0.0, 0.0, 40.0, 30.0], boxes[2]])
    detections = Detections(ones, 2 * ones, np.array([0.9, 0.8]), found)
    recalls = class_agnostic_recall(GroundTruth.from_dataset(dataset), detections)
    assert recalls["ARr_agnostic@300"] == pytest.approx(0.6)  # 0.5, 0.55, ..., 0.75
    assert recalls["ARf_agnostic@300"] == 0
    assert recalls["AR_agnostic@300"] == pytest.approx(0.3)
    assert np.isnan(recalls["ARc_agnostic@300"])
