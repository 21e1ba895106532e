"""Calibrated result files equal the detections of a calibrated detector."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from apa_det.data import read_lvis_json
from apa_det.engine import setup_job
from apa_det.engine.jobs import calibrate_results, write_predictions
from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, read_results
from apa_det.modeling import CALIBRATION_REGISTRY

METHODS = ("FRACAL", "LogitAdjustment", "NorCal")


@pytest.fixture
def files(tiny_dataset, tmp_path):
    """The paths of 3,000 random detections, their ground truth and the training set."""
    gt = read_lvis_json(tiny_dataset / "val.json")
    rng = np.random.default_rng(0)
    ids = [category["id"] for category in gt["categories"]]
    detections = [
        {
            "image_id": int(rng.choice([image["id"] for image in gt["images"]])),
            "category_id": ids[0] if i % 2 else int(rng.choice(ids)),
            "bbox": [1, 2, 10, 5],
            "score": score,
        }
        for i, score in enumerate([0.0, 1.0, *rng.uniform(size=2998).tolist()])
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(detections))
    return path, tiny_dataset / "val.json", tiny_dataset / "train.json"


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_calibration_of_all_scores(files, arguments, method, strength):
    """Each score in a row of its own, beside random scores of the other classes."""
    setup_job(arguments()).read_test_records("tiny_train")
    given = read_results(files[0], GroundTruth.from_file(files[1]))
    ours = calibrate_results(*files, method, strength)
    assert np.array_equal(ours.category_ids, given.category_ids)
    ids = sorted(c["id"] for c in read_lvis_json(files[2])["categories"])
    columns = [ids.index(i) for i in given.category_ids.tolist()]
    probabilities = torch.rand(len(columns), len(ids) + 1)
    rows = torch.arange(len(columns))
    probabilities[rows, columns] = torch.tensor(given.scores).float()
    calibration = CALIBRATION_REGISTRY.get(method)(strength)
    values = calibration.class_values(["tiny_train"])
    expected = calibration.binary_log_odds(probabilities.logit(), values).sigmoid()
    np.testing.assert_allclose(ours.scores, expected[rows, columns], atol=1e-6, rtol=1e-4)
    if not strength:
        assert np.array_equal(ours.scores, given.scores)


def test_classes_go_by_name(files, tmp_path):
    """The training set may have other category ids, in another order."""
    train = json.loads(files[2].read_text())
    for record, key in (
        *((category, "id") for category in train["categories"]),
        *((annotation, "category_id") for annotation in train["annotations"]),
    ):
        record[key] = 1000 - record[key]
    for image in train["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [1000 - i for i in image[key]]
    other = tmp_path / "train.json"
    other.write_text(json.dumps(train))
    expected = calibrate_results(*files, "FRACAL", 1.0)
    ours = calibrate_results(*files[:2], other, "FRACAL", 1.0)
    np.testing.assert_allclose(ours.scores, expected.scores, rtol=1e-12)


@pytest.mark.parametrize("score", ["sigmoid", "apa"])
def test_equals_the_calibrated_detector(arguments, files, tmp_path, score):
    """NMS is by class, and a calibration keeps the order within a class."""
    options = ["MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", score]
    options += ["TEST.DETECTIONS_PER_IMAGE", 1000, "MODEL.MASK_ON", False]
    torch.manual_seed(0)
    model = build_model(setup_job(arguments(*options)).config)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.02)
    torch.save({"model": model.state_dict(), "__author__": "apa_det"}, tmp_path / "weights.pth")
    options += ["MODEL.WEIGHTS", tmp_path / "weights.pth"]
    keys = ["MODEL.ROI_BOX_HEAD.CALIBRATION", "FRACAL"]
    keys += ["MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 0.7]
    plain, calibrated = (
        write_predictions(setup_job(arguments(*opts, eval_only=True)), str(tmp_path / name))
        for opts, name in ((options, "plain"), ([*options, *keys], "calibrated"))
    )
    ours = calibrate_results(plain, *files[1:], "FRACAL", 0.7)
    theirs = read_results(calibrated, GroundTruth.from_file(files[1]))
    assert len(ours) == len(theirs) > 100

    def rows(detections):
        boxes = detections.boxes.round(2).tolist()
        keys = zip(detections.image_ids, detections.category_ids, map(tuple, boxes), strict=True)
        return dict(zip(keys, detections.scores.tolist(), strict=True))

    assert rows(ours) == pytest.approx(rows(theirs), rel=1e-3)


def test_errors(files, tmp_path):
    with pytest.raises(UserError, match="one of FRACAL, LogitAdj.*, NorCal; got 'TauNorm'"):
        calibrate_results(*files, "TauNorm", 1.0)
    with pytest.raises(UserError, match="must be >= 0, got -1"):
        calibrate_results(*files, "FRACAL", -1.0)
    train = json.loads(files[2].read_text())
    train["categories"][0]["name"] = "another"
    other = tmp_path / "train.json"
    other.write_text(json.dumps(train))
    with pytest.raises(
        UserError, match="val.json has the categories .*, but .*train.json does not"
    ):
        calibrate_results(*files[:2], other, "FRACAL", 1.0)
    detections = json.loads(files[0].read_text())
    detections[0]["score"] = 1.5
    files[0].write_text(json.dumps(detections))
    with pytest.raises(UserError, match=r"Scores must be in \[0, 1\] .* from .* to 1.5"):
        calibrate_results(*files, "FRACAL", 1.0)
    files[0].write_text("[]")
    assert len(calibrate_results(*files, "FRACAL", 1.0)) == 0


def test_tool(files, tmp_path, tool, capsys):
    output = tmp_path / "new/calibrated.json"
    flags = ["--results", files[0], "--gt", files[1], "--count-from", files[2]]
    flags = [*map(str, flags), "--method", "FRACAL"]
    assert tool("calibrate", *flags, "--strengths", "1", "--output", str(output)) == 0
    assert "Wrote" in capsys.readouterr().out
    written = read_results(output, GroundTruth.from_file(files[1]))
    expected = calibrate_results(*files, "FRACAL", 1.0)
    assert np.array_equal(written.scores, expected.scores)
    for wrong, message in (
        (["--method", "FRACAL"], "Give --config-file to fit a strength, or --results"),
        (["--method", "FRACAL", "--config-file", "x.yaml", "--gt", "x"], "are for --results"),
        (flags, "--results needs --output"),
        ([*flags, "--output", str(output)], "--results needs one strength above 0"),
        ([*flags, "--output", str(output), "A", "1"], "--results takes no config"),
        ([*flags, "--output", "x.txt", "--strengths", "1"], "--output must name a .json file"),
    ):
        assert tool("calibrate", *wrong) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
