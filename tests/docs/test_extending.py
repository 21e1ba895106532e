"""The components of extending.md: each trains or evaluates a tiny model, and does what it says.

scripts/check_docs.py runs the commands of the page.
"""

import json
import os
import sys
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY
from torch.nn import functional as F

import apa_det
from apa_det import AGLU
from apa_det.data import TRAIN_SAMPLER_REGISTRY
from apa_det.engine import Trainer, read_config
from apa_det.evaluation import METRIC_REGISTRY
from apa_det.layers import ACTIVATION_REGISTRY, GATE_REGISTRY
from apa_det.modeling import BOX_CLASS_LOSS_REGISTRY
from apa_det.utils.user_modules import import_modules

REGISTRIES = (ACTIVATION_REGISTRY, GATE_REGISTRY, BOX_CLASS_LOSS_REGISTRY, TRAIN_SAMPLER_REGISTRY)
REGISTRIES += (BACKBONE_REGISTRY, METRIC_REGISTRY)
NAME = "my_components"
SOFTMAX = ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "softmax")


@pytest.fixture(scope="module")
def components(pages, blocks, tmp_path_factory):
    """The module of the page, imported as --import does, and its registrations undone."""
    before = [dict(registry._obj_map) for registry in REGISTRIES]
    path = [*sys.path]
    file = tmp_path_factory.mktemp("components") / f"{NAME}.py"
    file.write_text("\n".join(blocks(pages["docs/extending.md"], "python")))
    import_modules([str(file)])
    yield sys.modules[NAME]
    del sys.modules[NAME]
    sys.path[:] = path
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._obj_map.clear()
        registry._obj_map.update(entries)


@pytest.fixture
def step(components, tiny_config, tmp_path, forget_datasets):
    """Trains the tiny detector for one iteration; returns its trainer and its weights before."""

    def run(*opts, test=()):
        cfg = read_config(str(tiny_config), [*opts, "OUTPUT_DIR", str(tmp_path / opts[-1])])
        cfg.SOLVER.MAX_ITER, cfg.TEST.SAVE_PREDICTIONS = 1, True
        os.makedirs(cfg.OUTPUT_DIR)
        apa_det.setup(cfg)
        cfg.DATASETS.TEST = test
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        return trainer, before

    return run


def learned(trainer, before, kind) -> list[bool]:
    """Which parameters of the modules of a class the step has changed."""
    now = trainer.model.state_dict()
    names = [
        f"{name}.{parameter}"
        for name, module in trainer.model.named_modules()
        if isinstance(module, kind)
        for parameter, _ in module.named_parameters()
    ]
    return [not torch.equal(now[name], before[name]) for name in names]


def test_activation(components, step):
    trainer, before = step("MODEL.APA.ACTIVATION", "Softplus")
    changed = learned(trainer, before, components.Softplus)
    assert len(changed) == 1 + 2 * 8 and all(changed)  # of the stem and of 8 blocks
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(components.Softplus()(x), torch.log1p(x.exp()))


def test_gate(components, step):
    trainer, before = step("MODEL.APA.GATE", "ScaleGate")
    changed = learned(trainer, before, components.ScaleGate)
    assert len(changed) == 2 * 8 and all(changed)
    gate, x = components.ScaleGate(3), torch.randn(2, 3, 4, 5)
    means = x.mean(dim=(2, 3)) * gate.scale.weight.flatten() + gate.scale.bias
    torch.testing.assert_close(gate(x), x * torch.sigmoid(means)[:, :, None, None])


def test_class_loss(components, step):
    def losses(name):
        trainer, _ = step(*SOFTMAX, "MODEL.ROI_BOX_HEAD.CLASS_LOSS", name)
        return {k: v for k, (v, _) in trainer.storage.latest().items() if k.startswith("loss_")}

    smoothed, plain = losses("SmoothedCrossEntropy"), losses("CrossEntropy")
    assert smoothed.pop("loss_cls") != pytest.approx(plain.pop("loss_cls"), rel=1e-3)
    assert smoothed == pytest.approx(plain) and len(plain) >= 3
    logits, classes = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 4])
    loss = components.SmoothedCrossEntropy(num_classes=4, smoothing=0.2)(logits, classes, None)
    log = logits.log_softmax(dim=1)
    mixed = 0.8 * F.one_hot(classes, 5) + 0.2 / 5
    torch.testing.assert_close(loss, -(mixed * log).sum() / 6)


def test_sampler(components, step):
    trainer, _ = step("DATALOADER.SAMPLER_TRAIN", "CrowdedSampler")
    records = DatasetCatalog.get("tiny_train")
    expected = Counter(
        {i: 1 + (len(record["annotations"]) > 3) for i, record in enumerate(records)}
    )
    assert {1, 2} == {*expected.values()}
    sampler = components.CrowdedSampler(records, seed=1)
    assert Counter(islice(sampler, expected.total())) == expected
    built = trainer.build_train_loader(trainer.cfg)._sampler
    assert isinstance(built, components.CrowdedSampler)


def test_backbone(components, step):
    trainer, before = step("MODEL.BACKBONE.NAME", "PlainBackbone")
    assert isinstance(trainer.model.backbone, components.PlainBackbone)
    changed = learned(trainer, before, AGLU)
    assert len(changed) == 2 * 5 and all(changed)
    features = trainer.model.backbone(torch.zeros(1, 3, 100, 140))
    for name, shape in trainer.model.backbone.output_shape().items():
        size = tuple(-(-length // shape.stride) for length in (100, 140))
        assert features[name].shape == (1, shape.channels, *size)


def test_metric(components, step):
    truth = SimpleNamespace(images=["a", "b"])
    detections = SimpleNamespace(scores=np.array([0.1, 0.49, 0.5, 0.9, 1.0]))
    assert components.confident_per_image(truth, detections, None) == {"confident_per_image": 1.5}
    trainer, _ = step("TEST.EXTRA_METRICS", "['confident_per_image']", test=("tiny_val",))
    with open(f"{trainer.cfg.OUTPUT_DIR}/inference/lvis_instances_results.json") as file:
        scores = [result["score"] for result in json.load(file)]
    expected = sum(score >= 0.5 for score in scores) / 6
    results = trainer._last_eval_results
    for iou_type in ("bbox", "segm"):
        assert results[iou_type]["confident_per_image"] == pytest.approx(expected)
