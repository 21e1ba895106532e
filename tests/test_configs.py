"""Every config builds its model, with the layers that its name promises."""

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from apa_det import AGLU, APA, add_apa_config
from apa_det.layers import SEGate

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
    and path.parent.name != "Comparison"  # experiment files for tools/compare.py
)


def load(name, *overrides):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=True)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return cfg


def test_defaults_change_nothing():
    cfg, plain = get_cfg(), get_cfg()
    add_apa_config(cfg)

    def check(ours, theirs):
        for key, value in theirs.items():
            if isinstance(value, type(cfg)):
                check(ours[key], value)
            else:
                assert ours[key] == value, key

    check(cfg, plain)


@pytest.mark.parametrize("name", NAMES)
def test_builds(name):
    model = build_model(load(name))
    modules = list(model.backbone.bottom_up.modules())
    assert any(isinstance(m, AGLU) for m in modules) == ("AGLU" in name or "APA" in name)
    has_gate = any(word in name for word in ("gate", "SE_", "APA"))
    assert any(isinstance(m, SEGate) for m in modules) == has_gate
    if "retinanet" in name:
        return
    predictor = model.roi_heads.box_predictor
    predictors = predictor if "cascade" in name else [predictor]
    for predictor in predictors:
        learned = any(isinstance(m, APA) for m in predictor.modules())
        assert learned == ("score" in name or "APA" in name)


@pytest.mark.parametrize("depth", [50, 101])
def test_baseline_is_detectron2s_model(depth):
    """The state dict equals that of detectron2's configs, except for batch norm counters."""
    ours = build_model(load(f"LVISv1-InstanceSegmentation/mask_rcnn_R_{depth}_FPN_1x.yaml"))
    cfg = model_zoo.get_config(f"LVISv1-InstanceSegmentation/mask_rcnn_R_{depth}_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    theirs = build_model(cfg)
    shapes = {
        name: value.shape
        for name, value in ours.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
