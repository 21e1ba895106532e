"""A third-party detectron2 project that imports apa_det trains and evaluates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det import AGLU, APA
from apa_det.evaluation import METRICS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture
def their_train(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import their_project.train

    return their_project.train


@pytest.fixture
def cfg(their_train, tiny_dataset, tmp_path):
    return their_train.make_cfg(str(tiny_dataset), str(tmp_path / "output"))


def images():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 4:30] = True
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes([[4.0, 8, 30, 40]])
    instances.gt_classes, instances.gt_masks = torch.tensor([2]), BitMasks(masks)
    image = torch.randint(256, (3, 64, 64)).float()
    return [{"image": image, "instances": instances, "height": 64, "width": 64}]


def test_step_and_checkpoint(cfg, their_train, tmp_path):
    torch.manual_seed(0)
    model = build_model(cfg)
    assert type(model.backbone) is BACKBONE_REGISTRY.get("TheirNet")
    layers = [name for name, module in model.named_modules() if isinstance(module, APA)]
    assert {name.split(".")[0] for name in layers} == {"backbone", "roi_heads"}
    assert isinstance(model.roi_heads.box_head.layers[2], AGLU)

    optimizer = their_train.TheirTrainer.build_optimizer(cfg, model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with EventStorage():
        sum(model(images()).values()).backward()
    optimizer.step()
    for name in layers:
        for parameter in ("lambda_param", "kappa_param"):
            name_ = f"{name}.{parameter}"
            assert not torch.equal(model.get_parameter(name_), before[name_]), name_
    kappa = model.backbone.stem[2].kappa_param
    (group,) = [g for g in optimizer.param_groups if any(p is kappa for p in g["params"])]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1e-4), 0.0)

    DetectionCheckpointer(model, str(tmp_path)).save("model")
    again = build_model(cfg)
    DetectionCheckpointer(again).load(str(tmp_path / "model.pth"))
    inputs = images()
    with torch.no_grad():
        detections, expected = (m.eval()(inputs)[0]["instances"] for m in (again, model))
    assert len(detections) == 20
    assert torch.equal(detections.scores, expected.scores)
    assert torch.equal(detections.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(detections.pred_masks, expected.pred_masks)


def test_trains_and_evaluates(tiny_dataset, tmp_path, their_train):
    """In a process in another folder, with only the project and apa_det on its path."""
    output = tmp_path / "output"
    done = subprocess.run(
        [sys.executable, "-m", "their_project.train", str(tiny_dataset), str(output)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = [x for x in done.stdout.splitlines() if x.startswith("RESULTS")]
    assert all(f"'{name}':" in results for name in METRICS)
    assert (output / "model_final.pth").exists()
    lines = (output / "metrics.json").read_text().splitlines()
    written = {name for line in lines for name in json.loads(line)}
    assert {"bbox/APr", "apa/backbone.stem.2/lambda"} <= written
    assert "apa/roi_heads.box_predictor.score/kappa" in written
    their_train.main(str(tiny_dataset), str(output), "--resume")  # training is complete
    assert "Starting training from iteration 4" in (output / "log.txt").read_text()


def test_trains_without_a_trainer(tiny_dataset, tmp_path, their_train):
    results = their_train.main(str(tiny_dataset), str(tmp_path), "--loop")
    assert {*METRICS} <= results["bbox"].keys()
    assert (tmp_path / "model_final.pth").exists()
