"""Analysis of a checkpoint with the command-line tool."""

import csv

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from apa_det.analysis import ACTIVATION, CLASS_SCORE, GATE
from apa_det.checkpoint import transfer_rows
from apa_det.data import ensure_metadata
from apa_det.engine import read_job, setup_job
from apa_det.engine.jobs import analyze_checkpoint

SIZES = {"summary.png", "gates.png", "activations.png", "class_scores.png", "layers.csv"}


def rows(folder):
    with open(folder / "layers.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_yaml(arguments, tool, tmp_path, capsys):
    opts = ["MODEL.APA.GATE", "se", "MODEL.ROI_HEADS.NAME", "APAROIHeads"]
    opts += ["MODEL.ROI_BOX_HEAD.CLASS_SCORE", "gumbel"]
    args = arguments(*opts)
    model = build_model(setup_job(args).config)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    out = tmp_path / "analysis"
    flags = ["--config-file", args.config_file, "--num-images", "2", "--output", str(out)]
    flags += [*opts, "MODEL.WEIGHTS", tmp_path / "model.pth"]
    assert tool("analyze_activations", *flags) == 0
    assert SIZES <= {path.name for path in out.iterdir()}
    printed = capsys.readouterr().out
    assert "learned η" in printed and str(out / "summary.png") in printed
    found = {row["layer"]: row for row in rows(out)}
    block = found["backbone.bottom_up.res4.1.act2"]
    parameter = model.backbone.bottom_up.res4[1].act2.lambda_param
    assert float(block["lambda"]) == pytest.approx(parameter.item())
    assert int(block["num_values"]) == 2 * 256 * 4 * 4
    assert found["backbone.bottom_up.res5.0.gate.activation"]["kind"] == "gate"
    scores = [row for row in rows(out) if row["kind"] == "class score"]
    assert {row["classes"] for row in scores} == {"ground truth", "other"}
    assert {row["group"] for row in scores} <= {"rare", "common", "frequent"}
    assert {(row["lambda"], row["kappa"]) for row in scores} == {("0.0", "1.0")}


def test_classes_go_by_name(arguments, tmp_path):
    opts = ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.WEIGHTS", f"{tmp_path}/model.pth")
    job = read_job(arguments().config_file, opts)
    torch.manual_seed(0)
    state = job.build_model().state_dict()
    ensure_metadata("tiny_val")
    names = MetadataCatalog.get("tiny_val").thing_classes
    tables = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        turned = transfer_rows(state, state, order, 4).state
        torch.save({"model": turned, "class_names": [names[i] for i in order]}, job.weights)
        tables.append(analyze_checkpoint(job, 3).table())
    assert "rare" in tables[0] and tables[0] == tables[1]


def test_lazy(quickstart, tool, tmp_path, monkeypatch):
    analyses = []
    monkeypatch.setattr(
        "apa_det.analysis.write_analysis", lambda *args: analyses.append(args) or []
    )
    cfg = LazyConfig.apply_overrides(LazyConfig.load(quickstart.lazy), quickstart.lazy_opts)
    torch.save({"model": instantiate(cfg.model).state_dict()}, tmp_path / "model.pth")
    flags = [
        "--config-file",
        quickstart.lazy,
        "--num-images",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    weights = f"train.init_checkpoint={tmp_path / 'model.pth'}"
    assert tool("analyze_activations", *flags, *quickstart.lazy_opts, weights) == 0
    analysis, folder = analyses[0]
    assert folder == str(tmp_path / "out") and analysis.num_images == 1
    kinds = {kind: len(analysis.of_kind(kind)) for kind in (GATE, ACTIVATION, CLASS_SCORE)}
    assert kinds[GATE] == 8 and kinds[ACTIVATION] > 17 and kinds[CLASS_SCORE] > 0


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--metrics", "nowhere.json"], "nowhere.json does not exist"),
        (["--config-file", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["--config-file", "nowhere.py"], "no config file nowhere.py"),
    ],
)
def test_errors(tool, capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert tool("analyze_activations", *flags) == 2
    assert message in capsys.readouterr().err
