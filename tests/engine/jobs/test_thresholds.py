"""Score thresholds by F1: the command with its config."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from apa_det.engine import load_model, read_job, setup_job
from apa_det.engine.jobs.thresholds import fit_thresholds
from apa_det.errors import UserError
from apa_det.evaluation import evaluate
from apa_det.modeling.postprocessing import postprocessings

HEADS = ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "sigmoid")


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
