"""Means, standard deviations and intervals of made-up predictions."""

import csv
import gzip
import json
import math
import os
from itertools import combinations_with_replacement

import numpy as np
import pytest
from PIL import Image

from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, evaluate, read_results
from apa_det.experiments import gather, read_plan, write_figure, write_tables
from apa_det.utils.json_files import read_json, write_json

METRICS = ("AP", "APr", "APc", "APf")


def make_up(run, share, digest="same", **result):
    """Write the files of a run that detects a share of the objects, and a false positive each."""
    (_, (_, json_file, _)) = run.job.config.DATASETS.LVIS_FORMAT
    dataset = read_json(json_file)
    rng = np.random.default_rng(run.seed)
    records = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"] if hit else int(rng.integers(1, 5)),
            "bbox": annotation["bbox"] if hit else [0.0, 0.0, 9.0, 9.0],
            "score": float(rng.random()),
        }
        for annotation in dataset["annotations"]
        for hit in (rng.random() < share, False)
    ]
    os.makedirs(run.folder)
    with gzip.open(run.predictions_file, "wt") as file:
        json.dump(records, file)
    truth = GroundTruth.from_dataset(dataset)
    metrics = evaluate(truth, read_results(run.predictions_file, truth)).metrics()
    content = {
        "metrics": {f"bbox/{n}": None if v != v else 100 * v for n, v in metrics.items()},
        "seconds_per_iteration": 0.2 * share,
        "peak_memory_mb": 1000 * share,
        "image_digest": digest,
        "versions": {"torch": "2.0", "device": "cpu"},
    }
    write_json({**content, **result}, run.result_file)


@pytest.fixture
def make_plan(describe, tmp_path):
    def make(seeds=(0, 1, 2), names=("first", "second")):
        rows = [{"name": name} for name in names]
        plan = read_plan(str(tmp_path / "out"), describe(*rows, seeds=list(seeds)))
        plan.check()
        return plan

    return make


def test_equal_rows_have_no_difference(make_plan):
    plan = make_plan()
    for run in plan.runs:
        make_up(run, 0.5)
    results = gather(plan, 50)
    assert results.iou_types == ("bbox",) and results.metrics == METRICS
    for metric in METRICS:
        difference = results.differences["second", "bbox", metric]
        values = results.values("first", "bbox", metric)
        assert values == pytest.approx(results.values("second", "bbox", metric), nan_ok=True)
        expected = 0.0 if np.isfinite(list(values.values())).all() else math.nan
        assert difference.difference == pytest.approx(expected, nan_ok=True)
        interval = [difference.low, difference.high]
        assert interval == pytest.approx([expected] * 2, abs=1e-12, nan_ok=True)
    notes = results.notes()
    assert "The interval of ΔAP (bbox) includes 0: second." in notes
    defined = sum(not math.isnan(d.low) for d in results.differences.values())
    assert any(note.startswith(f"The {defined} intervals are not corrected") for note in notes)


def test_better_row(make_plan):
    plan = make_plan()
    for run in plan.runs:
        make_up(run, {"first": 0.3, "second": 0.95}[run.row])
    results = gather(plan, 200)
    difference = results.differences["second", "bbox", "AP"]
    means = [results.mean(name, "bbox", "AP") for name in ("first", "second")]
    assert difference.difference == pytest.approx(means[1] - means[0])
    assert 0 < difference.low < difference.difference < difference.high
    assert not any("ΔAP (bbox) includes 0" in note for note in results.notes())


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2)])
def test_interval_of_the_seeds_alone(make_plan, monkeypatch, seeds):
    """Drawing n - 1 of n seeds, the interval spans the means of all possible draws."""
    plan = make_plan(seeds)
    for run in plan.runs:
        make_up(run, {"first": 0.3, "second": 0.4 + 0.2 * run.seed}[run.row])
    monkeypatch.setattr(
        "apa_det.experiments.results.draw_image_weights",
        lambda num_images, num_resamples, seed: np.ones((num_resamples, num_images), int),
    )
    results = gather(plan, 400)
    first, second = (results.values(name, "bbox", "AP") for name in ("first", "second"))
    each = [second[seed] - first[seed] for seed in seeds]
    means = [np.mean(c) for c in combinations_with_replacement(each, len(seeds) - 1)]
    difference = results.differences["second", "bbox", "AP"]
    assert difference.low == pytest.approx(min(means))
    assert difference.high == pytest.approx(max(means))


def test_variance_of_drawn_seeds_is_that_of_their_mean():
    """With n - 1 draws of n seeds; with n draws it would be (n - 1) / n of it."""
    values = np.array([1.0, 4.0, 10.0])
    drawn = values[np.random.default_rng(0).integers(3, size=(200_000, 2))].mean(1)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)


def test_unfinished_runs(make_plan, tmp_path):
    plan = make_plan(names=("first", "second", "third"))
    for run in plan.runs:
        if (run.row, run.seed) not in {("second", 1), ("third", 0), ("third", 1), ("third", 2)}:
            make_up(run, 0.4 + 0.2 * run.seed)
    results = gather(plan, 20)
    assert len(results.values("second", "bbox", "AP")) == 2
    assert results.differences["second", "bbox", "AP"].difference == pytest.approx(
        0
    )  # of seeds 0 and 2
    assert math.isnan(results.differences["third", "bbox", "AP"].difference)
    assert "Missing: second (seed 1); third (seed 0, 1, 2)." in results.notes()
    text = write_tables(results, str(tmp_path))
    assert "2 of 3" in text and "0 of 3" in text
    write_figure(results, str(tmp_path))


def test_nothing_done(make_plan):
    with pytest.raises(UserError, match="No run of the comparison in .* is finished yet"):
        gather(make_plan())


def test_notes_on_images_and_versions(make_plan):
    plan = make_plan((0,))
    first, second = plan.runs
    make_up(first, 0.5)
    make_up(second, 0.5, "others", versions={"torch": "2.1", "device": "cpu"})
    notes = gather(plan, 5).notes()
    assert "Not trained on the same images as first (the reason is unknown): second." in notes
    assert "The runs had different torch: 2.0 and 2.1." in notes
    assert any(note.startswith("One seed:") for note in notes)


def test_predictions_of_another_model(make_plan):
    plan = make_plan((0,))
    first, second = plan.runs
    make_up(first, 0.3)
    make_up(second, 0.9)
    os.replace(first.predictions_file, second.predictions_file)
    os.remove(first.result_file)
    with pytest.raises(UserError, match="result.json does not match .*predictions.json.gz"):
        gather(plan, 5)


def test_tables_files_and_figure(make_plan, tmp_path):
    plan = make_plan((0, 1))
    for run in plan.runs:
        make_up(run, {"first": 0.4, "second": 0.8}[run.row] + 0.1 * run.seed)
    results = gather(plan, 50)
    text = write_tables(results, str(tmp_path))
    assert (tmp_path / "table.md").read_text() == text
    values = list(results.values("second", "bbox", "AP").values())
    spread = abs(values[0] - values[1]) / 2**0.5  # of a sample of two
    mean = sum(values) / 2
    assert f"{mean:.1f} ± {spread:.1f}" in text
    difference = results.differences["second", "bbox", "AP"]
    assert f"{difference.difference:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]" in text
    assert "170 ± 14 |    1.89 |          850 ± 71 |    1.89 |" in text  # of 0.8 and 0.9; 0.4, 0.5

    content = read_json(tmp_path / "results.json")
    (number,) = (n for n in content["numbers"] if (n["row"], n["metric"]) == ("second", "AP"))
    assert number["seeds"] == {"0": values[0], "1": values[1]}
    assert number["std"] == pytest.approx(spread)
    assert content["runs"]["second"]["0"]["metrics"]["bbox/AP"] == values[0]
    with open(tmp_path / "results.csv", newline="") as file:
        lines = {(r["row"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(lines["second", "AP"]["mean"]) == pytest.approx(mean)
    assert float(lines["second", "AP"]["low"]) == pytest.approx(difference.low)
    assert lines["first", "AP"]["difference"] == ""

    with Image.open(write_figure(results, str(tmp_path))) as image:
        assert image.width > 1000 and np.asarray(image.convert("L")).std() > 5
