"""Score thresholds by F1: hand-worked curves, and the command with its config."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from apa_det.engine import load_model, read_job, setup_job
from apa_det.engine.jobs.thresholds import best_threshold, choose_thresholds, fit_thresholds
from apa_det.errors import UserError
from apa_det.evaluation import Detections, FrequencyGroups, GroundTruth, evaluate
from apa_det.modeling.postprocessing import postprocessings

HEADS = ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "sigmoid")


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


@pytest.fixture
def checkpoint(arguments, tmp_path):
    """Overrides of a detector that finds the objects: the ground truth boxes are its proposals."""
    torch.manual_seed(0)
    model = build_model(setup_job(arguments(*HEADS)).config)
    path = tmp_path / "weights.pth"
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    torch.save({"model": model.state_dict(), "__author__": "apa_det"}, path)
    return (*HEADS, "MODEL.WEIGHTS", str(path), "MODEL.MASK_ON", False)


def test_command_writes_the_config(arguments, checkpoint, output, tool, capsys, monkeypatch):
    """The thresholds are in the printed overrides, in the config, and in the model."""
    from apa_det.engine.jobs import thresholds

    def evaluate_some(truth, detections, iou_type, **kwargs):  # random boxes match nothing
        result = evaluate(truth, detections, iou_type, **kwargs)
        result.matches.outcomes[::3] = 1
        return result

    monkeypatch.setattr(thresholds, "evaluate", evaluate_some)
    flags = ["--config-file", arguments().config_file, "--thresholds"]
    for by in ("group", "class"):
        options = [*flags, by, "--num-images", "4", "--opts", *map(str, checkpoint)]
        assert tool("calibrate", *options) == 0
        printed = capsys.readouterr().out
        job = read_job(str(output / "calibration/config.yaml"))
        value = job.config.TEST.SCORE_THRESH_PER_GROUP
        assert f"TEST.SCORE_THRESH_PER_GROUP {value}" in printed
        (processing,) = postprocessings(load_model(job))
        limits = processing.thresholds(0.0)
        assert len(limits) == 4 and limits.min() > 0
        if by == "class":
            saved = json.loads((output / "calibration/thresholds.json").read_text())
            names = processing.class_names
            assert limits.tolist() == pytest.approx([saved[name] for name in names])
        else:
            assert set(value.replace(",", ":").split(":")[::2]) == {"r", "c", "f"}


def test_errors(arguments, checkpoint, tool, capsys):
    flags = ["--config-file", arguments().config_file]
    standard = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", *map(str, checkpoint[4:])]
    for wrong, message in (
        ([*flags], "Give --method to fit a strength, or --thresholds"),
        ([*flags, "--thresholds", "group", "--method", "NorCal"], "--thresholds needs no --method"),
        ([*flags, "--thresholds", "group", "--opts", *standard], "no score thresholds by group"),
    ):
        assert tool("calibrate", *wrong) == 2
        assert message in capsys.readouterr().err
    job = setup_job(arguments(*checkpoint, eval_only=True))
    with pytest.raises(UserError, match="The number of images must be >= 1, got 0"):
        fit_thresholds(job, num_images=0)
