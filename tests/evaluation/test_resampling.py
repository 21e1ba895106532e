import copy
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from apa_det.data.frequency import FrequencyGroups
from apa_det.evaluation import GroundTruth, evaluate, read_results, resampling
from apa_det.evaluation.detections import Detections
from apa_det.evaluation.resampling import draw_image_weights, resampled_ap
from apa_det.utils.json_files import read_json

METRICS = ("AP", "APr", "APc", "APf")


@pytest.fixture(scope="module")
def dataset(detections_on_synthetic):
    """A dataset with negative and not exhaustive categories, and an ignored annotation."""
    dataset = read_json(detections_on_synthetic.gt)
    dataset["annotations"][3]["ignore"] = 1
    for image in dataset["images"][::3]:
        image["not_exhaustive_category_ids"] = [2, 5]
    return dataset


def matched(dataset, detections_on_synthetic, iou_type="bbox", engine="fast"):
    truth = GroundTruth.from_dataset(dataset)
    detections = read_results(detections_on_synthetic.results[0], truth)
    return evaluate(truth, detections, iou_type, engine=engine, matches=True), detections


@pytest.mark.parametrize("engine", ["fast", "lvis"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_unit_weights_give_the_ap_of_the_engine(dataset, detections_on_synthetic, iou_type, engine):
    evaluation, _ = matched(dataset, detections_on_synthetic, iou_type, engine)
    again = resampled_ap(evaluation, np.ones((2, len(dataset["images"]))))
    expected = evaluation.metrics()
    assert tuple(again) == METRICS
    for name in METRICS:
        assert again[name] == pytest.approx([expected[name]] * 2, abs=1e-12, nan_ok=True)


def resampled_dataset(dataset, detections, weights):
    """Return ground truth and detections with the images actually copied."""
    made = {**dataset, "images": [], "annotations": []}
    parts = []
    images = sorted(dataset["images"], key=lambda image: image["id"])
    for image, weight in zip(images, weights, strict=True):
        for _ in range(weight):
            new_id = len(made["images"]) + 1
            made["images"].append({**image, "id": new_id})
            made["annotations"] += [
                {**annotation, "id": len(made["annotations"]) + 1 + i, "image_id": new_id}
                for i, annotation in enumerate(
                    a for a in dataset["annotations"] if a["image_id"] == image["id"]
                )
            ]
            part = copy.copy(detections.select(detections.image_ids == image["id"]))
            object.__setattr__(part, "image_ids", np.full(len(part), new_id))
            parts.append(part)
    return GroundTruth.from_dataset(made), Detections.concatenate(parts)


@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_copies_of_images(dataset, detections_on_synthetic, seed):
    evaluation, detections = matched(dataset, detections_on_synthetic)
    weights = draw_image_weights(len(dataset["images"]), 1, seed)
    assert weights.max() > 1 and weights.min() == 0
    copies = resampled_dataset(dataset, detections, weights[0].tolist())
    expected = evaluate(*copies).metrics()
    again = resampled_ap(evaluation, weights)
    for name in METRICS:
        assert again[name] == pytest.approx([expected[name]], abs=1e-12, nan_ok=True)


def test_categories_that_are_not_drawn_are_excluded(dataset, detections_on_synthetic):
    evaluation, detections = matched(dataset, detections_on_synthetic)
    truth = evaluation.ground_truth
    scarcest = np.bincount(truth.annotation_categories).argmin()
    weights = np.ones((1, len(truth.image_ids)), int)
    weights[0, truth.annotation_images[truth.annotation_categories == scarcest]] = 0
    kept = truth.image_ids[weights[0] == 1]
    detections = detections.select(np.isin(detections.image_ids, kept))
    expected = evaluate(truth.restricted_to(kept), detections)
    assert expected.categories_evaluated() != evaluation.categories_evaluated()
    again = resampled_ap(evaluation, weights)
    for name in METRICS:
        assert again[name] == pytest.approx([expected.metrics()[name]], abs=1e-12, nan_ok=True)


def test_hand_worked_case():
    """One category: true positives at 0.9 and 0.7, a false positive in another image at 0.8."""
    box = [10.0, 10.0, 20.0, 20.0]
    dataset = {
        "images": [
            {"id": i, "height": 64, "width": 64, "neg_category_ids": [1]} for i in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "thing", "image_count": 1, "frequency": "r"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 400.0} for i in (1, 2)
        ],
    }
    detections = Detections(
        np.array([1, 3, 2]), np.ones(3, np.int64), np.array([0.9, 0.8, 0.7]), np.array([box] * 3)
    )
    evaluation = evaluate(GroundTruth.from_dataset(dataset), detections, matches=True)
    weights = np.array([[1, 1, 1], [1, 1, 2], [1, 1, 0], [0, 2, 1], [3, 0, 5]])
    # Precision is 1 up to the recall of the first true positive, then that of the second.
    expected = [
        (51 + 50 * 2 / 3) / 101,
        (51 + 50 * 2 / 4) / 101,
        1.0,
        2 / 3,
        1.0,
    ]
    assert resampled_ap(evaluation, weights)["APr"] == pytest.approx(expected, abs=1e-12)


def test_resamples_in_parts_equal_all_at_once(dataset, detections_on_synthetic, monkeypatch):
    evaluation, _ = matched(dataset, detections_on_synthetic)
    weights = draw_image_weights(len(dataset["images"]), 40)
    at_once = resampled_ap(evaluation, weights)
    monkeypatch.setattr(resampling, "_WEIGHTS_AT_ONCE", 300)
    in_parts = resampled_ap(evaluation, weights)
    for name in METRICS:
        assert np.array_equal(at_once[name], in_parts[name], equal_nan=True)


def test_memory_does_not_grow_with_images_times_detections():
    """One category with 6,000 detections in 6,000 images: a table of both has 36 million cells."""
    num, rng = 6000, np.random.default_rng(0)
    outcomes = np.repeat(rng.integers(0, 3, (num, 1)), 10, axis=1).astype(np.uint8)
    evaluation = SimpleNamespace(
        ground_truth=SimpleNamespace(
            category_ids=np.array([1]),
            groups=FrequencyGroups.lvis(),
            category_groups=np.array([2]),
            annotation_categories=np.zeros(num, np.int64),
            annotation_images=np.arange(num),
            counted=np.ones(num, bool),
        ),
        matches=SimpleNamespace(outcomes=outcomes),
        scores=rng.random(num),
        match_categories=np.zeros(num, np.int64),
        match_images=np.arange(num),
    )
    weights = draw_image_weights(num, 20)
    tracemalloc.start()
    aps = resampled_ap(evaluation, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    assert (aps["AP"] > 0).all()
