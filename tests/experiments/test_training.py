"""Training of runs: alone, resumed, and by the compare command."""

import gzip
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from apa_det.engine import read_config
from apa_det.engine.step import StepTrainer
from apa_det.experiments import read_plan, run_all, train_run
from apa_det.experiments.training import CostMeter
from apa_det.layers import ACTIVATION_REGISTRY
from apa_det.utils.json_files import read_json
from apa_det.utils.user_modules import import_modules


def make_run(describe, folder, iterations, *opts):
    plan = read_plan(
        str(folder), describe({"name": "row"}), opts=["SOLVER.MAX_ITER", iterations, *opts]
    )
    run = plan.runs[0]
    Path(run.folder).mkdir(parents=True, exist_ok=True)
    run.job.save_config()
    return run


@pytest.fixture(scope="module")
def whole(describe, tmp_path_factory):
    run = make_run(describe, tmp_path_factory.mktemp("whole"), 4)
    train_run(run.folder)
    return read_json(run.result_file)


def test_resumed_run_sees_the_same_images(describe, tmp_path, whole):
    run = make_run(describe, tmp_path / "parts", 3)
    train_run(run.folder)
    assert read_json(run.result_file)["image_digest"] != whole["image_digest"]
    make_run(describe, tmp_path / "parts", 4)
    train_run(run.folder)
    resumed = read_json(run.result_file)
    assert resumed["image_digest"] == whole["image_digest"]
    assert resumed["iterations"] == whole["iterations"] == 4
    checkpoint = torch.load(Path(run.folder) / "model_final.pth", weights_only=False)
    assert len(checkpoint["trainer"]["hooks"]["CostMeter"]["seconds"]) == 4

    Path(run.result_file).unlink()  # as if stopped during evaluation
    train_run(run.folder)
    assert read_json(run.result_file) == resumed


def test_failed_and_resumed_run_sees_the_same_images(describe, tmp_path, whole):
    """The images of the iteration that failed are not counted twice."""
    run = make_run(describe, tmp_path, 4)
    write = StepTrainer._write_losses

    def fail(self, *args):
        if self.iter == 2:
            raise RuntimeError("out of memory")
        return write(self, *args)

    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(RuntimeError):
        monkeypatch.setattr(StepTrainer, "_write_losses", fail)
        train_run(run.folder)
    assert (Path(run.folder) / "model_0000001.pth").exists()
    train_run(run.folder)
    assert read_json(run.result_file)["image_digest"] == whole["image_digest"]


def test_result_file(whole):
    assert whole["metrics"].keys() >= {"bbox/AP", "bbox/AP50", "bbox/APr", "bbox/APc", "bbox/APf"}
    assert 0 < whole["seconds_per_iteration"] < 60
    assert 50 < whole["peak_memory_mb"] < 20_000
    assert whole["versions"]["torch"] == torch.__version__


def test_another_model_sees_the_same_images(describe, tmp_path, whole):
    """The model draws more random numbers: dropout in gates, DropLoss, initial λ and κ."""
    opts = ["MODEL.APA.ACTIVATION", "aglu", "MODEL.APA.GATE", "se"]
    opts += ["MODEL.ROI_BOX_HEAD.CLASS_SCORE", "gumbel", "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS", True]
    run = make_run(describe, tmp_path / "other", 4, *opts)
    train_run(run.folder)
    assert read_json(run.result_file)["image_digest"] == whole["image_digest"]
    flipped = make_run(describe, tmp_path / "flipped", 4, "INPUT.RANDOM_FLIP", "none")
    train_run(flipped.folder)
    assert read_json(flipped.result_file)["image_digest"] != whole["image_digest"]


def test_cost_meter_excludes_loading_and_resumes(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 22.5])
    data_times = iter([0.25, 0.5, 0.25])
    monkeypatch.setattr("apa_det.experiments.training.time.perf_counter", lambda: next(clock))

    class Storage:
        def latest(self):
            return {"data_time": (next(data_times), 0)}

    monkeypatch.setattr("apa_det.experiments.training.get_event_storage", Storage)
    meter = CostMeter(torch.device("cpu"))
    for _ in range(2):
        meter.before_step()
        meter.after_step()
    restarted = CostMeter(torch.device("cpu"))
    restarted.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    restarted.before_step()
    restarted.after_step()
    assert restarted.summary()["seconds_per_iteration"] == 2.25  # median of 0.75, 2.5 and 2.25


MODULE = """
from torch import nn
from apa_det.layers import ACTIVATION_REGISTRY

@ACTIVATION_REGISTRY.register()
def user_tanh(num_channels, **kwargs):
    return nn.Tanh()
"""


def test_runs_import_the_modules_of_the_user(describe, tmp_path):
    (tmp_path / "user_module.py").write_text(MODULE)
    row = {"name": "tanh", "opts": ["MODEL.APA.ACTIVATION", "user_tanh"]}
    imports = [str(tmp_path / "user_module.py")]
    import_modules(imports)  # as the command does
    plan = read_plan(str(tmp_path), describe(row), imports=imports)
    plan.check()
    del ACTIVATION_REGISTRY._obj_map["user_tanh"], sys.modules["user_module"]
    assert run_all(plan) == []
    assert "user_tanh" not in ACTIVATION_REGISTRY  # the process of the run registered it
    assert read_config(plan.runs[0].config_file).IMPORTS == imports


def test_the_tool(describe, tmp_path, tool, capfd):
    """One row trains and one fails; finished runs are kept, and added rows are trained."""
    compare = partial(tool, "compare", "--output", tmp_path / "out")
    loss = ["MODEL.ROI_BOX_HEAD.CLASS_SCORE", "sigmoid", "MODEL.ROI_BOX_HEAD.CLASS_LOSS"]
    broken = {"name": "broken", "opts": [*loss, "SeesawLoss"]}
    description = describe(
        {"name": "first"}, broken, {"name": "broken, calibrated", "model_of": "broken"}
    )
    assert compare(description, "--dry-run") == 0
    out = capfd.readouterr().out
    assert "to do" in out and "8 images in total" in out
    assert not (tmp_path / "out").exists()

    assert compare(description, "--report-only") == 2
    assert "No run of the comparison" in capfd.readouterr().err

    assert compare(description, "--resamples", "10") == 1
    captured = capfd.readouterr()
    assert "broken, seed 0 failed with exit code 2" in captured.err
    assert "SeesawLoss" in captured.err
    assert "Missing: broken (seed 0); broken, calibrated (seed 0)." in captured.out
    run = tmp_path / "out/runs/first/seed0"
    written = (run / "result.json").stat().st_mtime_ns
    assert (run / "predictions.json.gz").is_file() and (tmp_path / "out/comparison.png").is_file()

    second = {"name": "second", "opts": ["MODEL.APA.ACTIVATION", "aglu"]}
    opts = ["MODEL.ROI_BOX_HEAD.CALIBRATION", "TauNorm"]
    opts += ["MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 1.0]
    calibrated = {"name": "calibrated", "model_of": "first", "opts": opts}
    added = describe({"name": "first"}, {"name": "again", "model_of": "first"}, calibrated, second)
    assert compare(added, "--resamples", "10") == 0
    out = capfd.readouterr().out
    assert "Not trained on the same images" not in out
    assert "- second: `MODEL.APA.ACTIVATION aglu`" in out and "- again: nothing" in out
    first, again, calibrated = (
        gzip.decompress((tmp_path / f"out/runs/{name}/seed0/predictions.json.gz").read_bytes())
        for name in ("first", "again", "calibrated")
    )
    assert again == first != calibrated
    assert (run / "result.json").stat().st_mtime_ns == written

    assert compare(describe({"name": "first"}), "--opts", "SEED") == 2
    assert "must be KEY VALUE pairs" in capfd.readouterr().err
