"""Fitting a calibration: each row equals an evaluation with that strength in the config."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

from apa_det.checkpoint import transfer_rows
from apa_det.data import register_lvis_format
from apa_det.engine import LazyJob, read_lazy_config, setup_job
from apa_det.engine.jobs.calibrate import (
    CalibrationFit,
    difference_noise,
    fit_calibration,
    score_strengths,
)
from apa_det.engine.testing import build_subset_loader
from apa_det.errors import UserError
from apa_det.evaluation import LongTailEvaluator

ROOT = Path(__file__).parents[3]
NAMES = {
    False: ("MODEL.ROI_HEADS.NAME", "APAROIHeads"),
    True: (
        *("MODEL.ROI_HEADS.NAME", "APACascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ),
}
CALIBRATION = ("MODEL.ROI_BOX_HEAD.CALIBRATION", "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH")


@pytest.fixture
def checkpoint(arguments, tmp_path):
    """Make config options of a detector with random weights, whose scores differ by class."""

    def make(cascade=False, score="softmax"):
        options = (*NAMES[cascade], "MODEL.ROI_BOX_HEAD.CLASS_SCORE", score)
        torch.manual_seed(0)
        model = build_model(setup_job(arguments(*options)).config)
        for name, parameter in model.named_parameters():
            if "cls_score.weight" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        path = tmp_path / "weights.pth"
        torch.save({"model": model.state_dict(), "__author__": "apa_det"}, path)
        return (*options, "MODEL.WEIGHTS", path)

    return make


@pytest.mark.parametrize(
    "method, score, cascade",
    [("NorCal", "softmax", False), ("TauNorm", "apa", True), ("FRACAL", "gumbel", True)],
)
def test_rows_equal_evaluation(arguments, checkpoint, method, score, cascade):
    options = checkpoint(cascade, score)
    fit = fit_calibration(setup_job(arguments(*options, eval_only=True)), method, 8, (0.0, 0.8))
    assert fit.metrics[0] != fit.metrics[1]
    for strength, row in zip(fit.strengths, fit.metrics, strict=True):
        key = (CALIBRATION[0], method, CALIBRATION[1], strength) if strength else ()
        job = setup_job(arguments(*options, *key, "MODEL.MASK_ON", False))
        model = build_model(job.config)
        model.load_state_dict(torch.load(job.weights)["model"], strict=False)
        evaluator = LongTailEvaluator("tiny_train", subset=8, subset_only=True)
        loader = build_subset_loader(job, "tiny_train", evaluator.subset.image_ids)
        metrics = inference_on_dataset(model, loader, evaluator)["subset/bbox"]
        assert row == pytest.approx({name: metrics[name] for name in row}, nan_ok=True)


@pytest.mark.parametrize("method", ["NorCal", "TauNorm"])
def test_classes_go_by_name(arguments, checkpoint, tiny_dataset, tmp_path, method):
    """A checkpoint with the classes of the training set in another order."""
    register_lvis_format("tiny_turned", f"{tiny_dataset}/train.json", str(tiny_dataset))
    options = (*checkpoint(), "DATASETS.TRAIN", "('tiny_turned',)")
    job = setup_job(arguments(*options, eval_only=True))
    expected = fit_calibration(job, method, 8, (0.0, 0.8))
    names = MetadataCatalog.get("tiny_turned").thing_classes
    state = torch.load(job.weights)["model"]
    turned = transfer_rows(state, state, [2, 0, 3, 1], 4).state
    assert not torch.equal(
        *(s["roi_heads.box_predictor.cls_score.weight"] for s in (state, turned))
    )
    torch.save({"model": turned, "class_names": [names[i] for i in (2, 0, 3, 1)]}, job.weights)
    fit = fit_calibration(setup_job(arguments(*options, eval_only=True)), method, 8, (0.0, 0.8))
    for row, expected_row in zip(fit.metrics, expected.metrics, strict=True):
        assert row == pytest.approx(expected_row, nan_ok=True, abs=1e-4)
    DatasetCatalog.remove("tiny_turned"), MetadataCatalog.remove("tiny_turned")


def test_the_model_is_restored(arguments, checkpoint):
    options = (*checkpoint(), CALIBRATION[0], "NorCal", CALIBRATION[1], 0.3)
    job = setup_job(arguments(*options, eval_only=True))
    model = build_model(job.config)
    predictor, before = model.roi_heads.box_predictor, model.roi_heads.box_predictor.calibration
    evaluator = LongTailEvaluator("tiny_train", subset=2, subset_only=True)
    loader = build_subset_loader(job, "tiny_train", evaluator.subset.image_ids)
    fit = (loader, evaluator.subset, evaluator.category_ids, "NorCal", (0.5,))
    score_strengths(model, *fit)
    assert model.roi_heads.mask_on and predictor.calibration is before and before.strength == 0.3
    assert "predict_probs" not in vars(predictor)
    predictor.calibration_datasets = ()
    with pytest.raises(UserError, match="set calibration_datasets of the box predictors"):
        score_strengths(model, *fit)
    model.roi_heads.box_predictor = torch.nn.Identity()
    with pytest.raises(UserError, match="no box predictor to calibrate"):
        score_strengths(model, *fit)


def fit_of(aps, noise, strengths=(0.0, 0.5, 1.0)):
    metrics = [{"AP": ap, "APr": float("nan")} for ap in aps]
    return CalibrationFit("NorCal", strengths, metrics, [3.0, 2.0, 1.5], noise)


def test_best_strength(tmp_path):
    """The smallest of equally good ones; a note on the largest one."""
    fit = fit_of([1.0, 3.0, 3.0], [0.0, 0.5, 0.5])
    assert fit.best == 0.5
    start = "Strength 0.5 has the highest AP of those that raise it by more than the noise: +2.00 ±"
    assert fit.advice().startswith(start)
    assert [line.split() for line in fit.table().splitlines()[2:]] == [
        ["0", "1.00", "–", "3.0"],
        ["0.5", "*", "3.00", "–", "+2.00", "±", "0.50", "2.0"],
        ["1", "3.00", "–", "+2.00", "±", "0.50", "1.5"],
    ]
    fit.draw(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert "the largest one tested" in fit_of([1.0, 2.0, 3.0], [0.0, 0.5, 0.5]).advice()


def test_nothing_within_the_noise_is_recommended():
    flat = fit_of([1.0, 1.2, 1.1], [0.0, 0.3, 0.4])
    assert flat.best == 0
    start = "No strength of NorCal differs from 0 by more than the noise: keep 0."
    assert flat.advice().startswith(start)
    worse = fit_of([3.0, 3.1, 1.0], [0.0, 0.3, 0.4])
    assert "No strength of NorCal improves AP by more than the noise" in worse.advice()
    # The highest AP is within its noise, another one is not.
    assert fit_of([1.0, 1.5, 1.6], [0.0, 0.3, 0.9]).best == 0.5
    assert fit_of([1.0, 1.0, 1.0 + 1e-12], [0.0, 0.0, 0.0]).best == 0
    assert fit_of([1.0, 9.0, 9.0], [0.0, np.nan, np.nan]).best == 0  # of one image


def test_noise_of_differences():
    """Each strength shifts by a normal error: the largest of 10 exceeds its noise in 5 %."""
    random = np.random.default_rng(0)
    spreads = np.array([0.0, *np.linspace(0.1, 1, 10)])[:, None]
    common = random.normal(size=(1, 20_000))  # of all strengths, which cancels
    samples = 30 + 5 * common + spreads * random.normal(size=(11, 20_000))
    noise = np.array(difference_noise(samples, 0))
    new = spreads * random.normal(size=(11, 20_000))
    exceeded = (np.abs(new) > noise[:, None]).any(axis=0).mean()
    assert noise[0] == 0 and exceeded == pytest.approx(0.05, abs=0.01)
    assert difference_noise(np.ones((2, 9)), 1) == [0.0, 0.0]
    assert np.isnan(difference_noise(np.ones((2, 1)), 1)[0])
    samples[3, :7] = np.nan  # samples without ground truth
    assert difference_noise(samples, 0) == pytest.approx(noise, rel=0.02)


def test_noise_of_a_model(arguments, checkpoint):
    """Equal AP has no noise; that of a single image is unknown."""
    job = setup_job(arguments(*checkpoint(), eval_only=True))
    fit = fit_calibration(job, "NorCal", 8, (0.0, 0.4, 0.8))
    assert fit.noise == [0.0, 0.0, 0.0] and "keep 0" in fit.advice()
    single = fit_calibration(job, "NorCal", 1, (0.0, 0.8))
    assert single.noise[0] == 0 and np.isnan(single.noise[1]) and single.best == 0
    assert "± –" in single.table()


def test_tool(arguments, checkpoint, output, tool, capsys):
    options = [str(option) for option in checkpoint()]
    flags = ["--config-file", arguments().config_file, "--method", "LogitAdjustment"]
    flags += ["--num-images", "4", "--strengths", "0.1,0.2"]
    assert tool("calibrate", *flags, *options) == 0
    printed = capsys.readouterr().out
    assert "detections per image" in printed
    assert (output / "calibration/LogitAdjustment.png").stat().st_size > 1000
    chosen = output / "calibration/LogitAdjustment.yaml"
    if "keep 0" in printed:
        assert not chosen.exists()
    else:
        head = yaml.safe_load(chosen.read_text())["MODEL"]["ROI_BOX_HEAD"]
        assert head["CALIBRATION"] == "LogitAdjustment"
        assert f"CALIBRATION_STRENGTH {head['CALIBRATION_STRENGTH']}" in printed


def test_lazy_config(quickstart, output, tool, capsys):
    """The numbers equal those of the yaml config."""
    options = [
        *(*quickstart.lazy_opts, "dataloader.test.dataset.names=tiny_train"),
        *(f"train.output_dir={output}", f"train.init_checkpoint={output}/weights.pth"),
    ]
    lazy = read_lazy_config(quickstart.lazy, options)
    torch.manual_seed(0)
    output.mkdir()
    weights = instantiate(lazy.model).state_dict()
    weights["roi_heads.box_predictor.cls_score.weight"].normal_(std=0.3)
    torch.save({"model": weights, "__author__": "apa_det"}, output / "weights.pth")
    flags = ["--method", "NorCal", "--num-images", "4", "--strengths", "1"]
    assert tool("calibrate", "--config-file", quickstart.lazy, *flags, *options) == 0
    by_lazy = capsys.readouterr().out
    options = [
        *(*quickstart.opts, "DATASETS.TEST", "('tiny_train',)"),
        *("OUTPUT_DIR", str(output), "MODEL.WEIGHTS", f"{output}/weights.pth"),
    ]
    assert tool("calibrate", "--config-file", quickstart.yaml, *flags, *options) == 0
    by_yaml = capsys.readouterr().out
    assert "detections per image" in by_yaml
    assert table(by_lazy) == table(by_yaml)


def table(printed):
    start = printed.index("NorCal  ")
    return printed[start : printed.index("\n\n", start)]


def test_overrides_of_a_lazy_cascade():
    config = f"{ROOT}/configs/V3Det-Detection/cascade_rcnn_SE_R_50_FPN_AGLU_2x.py"
    overrides = LazyJob(read_lazy_config(config)).calibration_overrides("TauNorm", 0.5)
    opts = [option for line in overrides for option in line.split()]
    predictors = read_lazy_config(config, opts).model.roi_heads.box_predictors
    assert [predictor.calibration_strength for predictor in predictors] == [0.5] * 3
    assert [predictor.calibration for predictor in predictors] == ["TauNorm"] * 3


def test_tool_errors_are_one_line(arguments, checkpoint, tool, capsys):
    flags = ["--config-file", arguments().config_file, "--method", "NorCal"]
    options = [str(option) for option in checkpoint()]
    for wrong, message in (
        ([*flags, "--num-images", "0"], "--num-images: must be >= 1, got 0"),
        ([*flags, *options, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "no effect on Standard"),
        ([*flags, *options, "DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    ):
        assert tool("calibrate", *wrong) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
