"""Score thresholds by F1, and curves over the score: hand-worked cases."""

import numpy as np
import pytest

from apa_det.data.class_thresholds import parse_thresholds
from apa_det.evaluation import Detections, FrequencyGroups, GroundTruth, evaluate
from apa_det.evaluation.score_curves import curves_by_score
from apa_det.evaluation.score_thresholds import best_threshold, choose_thresholds


def test_best_threshold_by_hand():
    """4 objects; F1 after 1, 2, 3 and 5 detections is 2/5, 4/6, 4/7 and 6/9; two scores tie."""
    scores = np.array([0.5, 0.9, 0.3, 0.3, 0.8], np.float32)
    correct = np.array([False, True, False, True, True])
    best = best_threshold(scores, correct, 4)
    assert best.f1 == pytest.approx(2 / 3) and best.num_objects == 4
    assert 0.5 < best.value < 0.8 and best.value == 0.65
    assert (best.precision, best.recall) == (1.0, 0.5)
    tied = best_threshold(scores, np.array([True, False, False, True, False]), 2)
    assert tied.value < 0.3 and tied.f1 == pytest.approx(4 / 7)
    nothing = best_threshold(scores, np.zeros(5, bool), 3)
    assert np.isnan(nothing.value) and nothing.f1 == 0
    assert np.isnan(best_threshold(scores[:0], correct[:0], 3).value)


def test_any_threshold_is_not_better():
    rng, limits = np.random.default_rng(0), (np.arange(12) + 0.5) / 12
    for _ in range(30):
        scores = rng.integers(1, 12, 25).astype(np.float32) / 12
        correct = rng.random(25) < scores
        best = best_threshold(scores, correct, 20)
        f1 = [2 * correct[scores > t].sum() / ((scores > t).sum() + 20) for t in limits]
        above = scores > np.float32(best.value)
        assert 2 * correct[above].sum() / (above.sum() + 20) == best.f1 == max(f1)


@pytest.fixture
def evaluation():
    """Group r: class 1; group f: classes 2 and 3; class 4 has objects and no detection."""
    box, names = [10, 10, 20, 20], {1: "r", 2: "f", 3: "f", 4: "x"}
    annotations = [
        {"id": 10 * i + c, "image_id": i, "category_id": c, "bbox": box, "area": 400}
        for i in range(1, 4)
        for c in names
    ]
    truth = GroundTruth(
        {
            "images": [{"id": i, "width": 90, "height": 90} for i in range(1, 4)],
            "categories": [{"id": c, "name": f"class {c}", "image_count": 3} for c in names],
            "annotations": annotations,
        },
        FrequencyGroups.from_mapping(names),
        everything_verified=True,
    )
    found = [
        *[(1, 1, 0.2, box), (2, 1, 0.1, box), (3, 1, 0.05, [60, 60, 5, 5])],
        *[(1, 2, 0.9, box), (2, 2, 0.8, [60, 60, 9, 9]), (1, 3, 0.7, box), (2, 3, 0.6, box)],
        *[(3, 2, 0.5, [60, 60, 5, 5]), (3, 3, 0.4, [60, 60, 5, 5])],
    ]
    records = [{"image_id": i, "category_id": c, "score": s, "bbox": b} for i, c, s, b in found]
    return evaluate(truth, Detections.from_records(records), "bbox", matches=True)


def test_groups_and_classes(evaluation):
    fit = choose_thresholds(evaluation, "class")
    assert list(fit.groups) == ["r", "f", "x", "all"]
    assert 0.05 < fit.groups["r"].value < 0.1 and fit.groups["r"].f1 == pytest.approx(4 / 5)
    assert 0.5 < fit.groups["f"].value < 0.6 and fit.groups["f"].f1 == pytest.approx(6 / 10)
    overall = fit.groups["all"].value
    text = dict(part.split(":") for part in fit.text().split(","))
    assert float(text["r"]) == pytest.approx(fit.groups["r"].value)
    assert float(text["x"]) == pytest.approx(overall)  # no true positive of its own
    assert fit.by_class()["class 2"] == fit.groups["f"].value  # too few objects
    assert fit.by_class()["class 4"] == overall
    assert "–" in fit.table()


def test_curves_and_flag(evaluation):
    """Against a count over the detections; the flag is what the demo's parser reads."""
    curves = curves_by_score(evaluation)
    truth, outcomes = evaluation.ground_truth, evaluation.matches.outcomes[:, 0]
    for name, curve in curves.groups.items():
        group = truth.groups.names.index(name)
        members = truth.category_groups[evaluation.match_categories] == group
        objects = (truth.category_groups[truth.annotation_categories] == group).sum()
        for score in (0.0, 0.05, 0.1, 0.6, 0.605, 1.0):
            (i,) = np.flatnonzero(curve.scores == score)
            above = members & (evaluation.scores >= score)
            hits = (above & (outcomes == 1)).sum()
            expected = (hits / above.sum() if above.any() else np.nan, hits / objects)
            assert (curve.precision[i], curve.recall[i]) == pytest.approx(expected, nan_ok=True)
            assert curve.f1[i] == pytest.approx(2 * hits / (above.sum() + objects))
        best = curves.thresholds.groups[name]
        assert not curve.f1.max() > best.f1
    text = curves.thresholds.text()
    thresholds = parse_thresholds(text)
    assert thresholds["r"] == pytest.approx(curves.thresholds.groups["r"].value)
    assert set(thresholds) == {"r", "f", "x"}


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(1, 1, 0.9, [60, 60, 5, 5])],
        [(1, 1, 1.2, [10, 10, 20, 20])],
        [(1, 1, 0.0, [10, 10, 20, 20])],
    ],
)
def test_no_curves_without_hits_or_with_other_scores(evaluation, records):
    keys = ("image_id", "category_id", "score", "bbox")
    found = Detections.from_records([dict(zip(keys, values, strict=True)) for values in records])
    assert curves_by_score(evaluate(evaluation.ground_truth, found, "bbox", matches=True)) is None
