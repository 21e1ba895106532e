"""Published detectors are recognized, and no file fills part of a gate."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from apa_det.checkpoint import Layout, convert, reverse
from apa_det.checkpoint.conversion import Conversion, TensorRecord, describe_config
from apa_det.checkpoint.names import to_detectron2
from apa_det.checkpoint.published import gate_settings, published_config
from apa_det.engine.checkpointer import StrictCheckpointer
from apa_det.errors import UserError

LVIS, V3DET = "LVISv1-InstanceSegmentation", "V3Det-Detection"
RELU = dict(gate="none", aglu=False)
SOFTMAX = dict(num_classes=1203, classifier="normed_softmax", **RELU)
WRAPPED = dict(num_classes=13204, classifier="wrapped_cauchy", masks=False)
NORMED = dict(num_classes=13204, classifier="normed_sigmoid", masks=False, **RELU)
DETECTORS = {
    f"{LVIS}/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml": dict(num_classes=1203),
    f"{LVIS}/mask_rcnn_SE_R_101_FPN_AGLU_GOL_2x.yaml": dict(
        num_classes=1203, depth=101, temperature=20.0
    ),
    f"{LVIS}/mask_rcnn_R_50_FPN_normed_FRACAL_2x.yaml": SOFTMAX,
    f"{LVIS}/mask_rcnn_R_101_FPN_normed_FRACAL_2x.yaml": dict(
        SOFTMAX, depth=101, temperature=20.0, carafe=True
    ),
    "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_2x.yaml": dict(
        num_classes=80, classifier="softmax", temperature="none"
    ),
    f"{V3DET}/faster_rcnn_SE_R_50_FPN_AGLU_2x.yaml": WRAPPED,
    f"{V3DET}/cascade_rcnn_SE_R_50_FPN_AGLU_2x.yaml": dict(WRAPPED, cascade=True),
    f"{V3DET}/faster_rcnn_R_50_FPN_wrapped_cauchy_2x.yaml": dict(WRAPPED, **RELU),
    f"{V3DET}/faster_rcnn_SE_R_50_FPN_wrapped_cauchy_2x.yaml": dict(
        WRAPPED, gate="plain_se", aglu=False
    ),
    f"{V3DET}/cascade_rcnn_SE_R_50_FPN_wrapped_cauchy_2x.yaml": dict(
        WRAPPED, gate="plain_se", aglu=False, cascade=True
    ),
    f"{V3DET}/faster_rcnn_R_50_FPN_normed_sigmoid_2x.yaml": NORMED,
    f"{V3DET}/cascade_rcnn_R_50_FPN_normed_sigmoid_2x.yaml": dict(NORMED, cascade=True),
    f"{V3DET}/mask_rcnn_R_50_FPN_normed_sigmoid_2x.yaml": dict(
        NORMED, masks=True, temperature=50.0
    ),
}


def state_of(published, **options):
    with torch.device("meta"):
        return published.Detector(**options).state_dict()


@pytest.mark.parametrize("path", DETECTORS)
def test_configs(path, published):
    state = state_of(published, **DETECTORS[path])
    assert published_config(state) == (path, {})
    assert describe_config(state) == f", which is configs/{path}"
    converted = {to_detectron2(name): tensor for name, tensor in state.items()}
    assert published_config(converted) == (path, {})


@pytest.mark.parametrize(
    "options, overrides",
    [
        (dict(gate="cbam"), {"MODEL.APA.GATE": "cbam"}),
        (
            dict(gate="cbam_sigmoid"),
            {"MODEL.APA.GATE": "cbam", "MODEL.APA.GATE_SPATIAL_ACTIVATION": "sigmoid"},
        ),
        (dict(gate="spatial"), {"MODEL.APA.GATE": "spatial"}),
        (
            dict(temperature=20.0),
            {
                "MODEL.ROI_MASK_HEAD.UPSAMPLE": "deconv",
                "MODEL.ROI_MASK_HEAD.PREDICTOR_LEARN_TEMPERATURE": False,
            },
        ),
    ],
)
def test_overrides(options, overrides, published):
    """A detector that differs from the config in keys: they are named."""
    config = published_config(state_of(published, num_classes=1203, **options))
    assert config.path == f"{LVIS}/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml"
    assert {k: v for k, v in config.overrides.items() if k in overrides} == overrides
    assert all(f"{key} {value}" in str(config) for key, value in overrides.items())


def test_unknown(published):
    linear = dict(num_classes=1203, classifier="softmax", temperature="none", **RELU)
    for options in (dict(num_classes=7), dict(num_classes=1203, cascade=True), linear):
        assert published_config(state_of(published, **options)) is None
        assert describe_config(state_of(published, **options)) == ""
    assert published_config({"conv1.weight": torch.zeros(1)}) is None


def test_error_names_the_config():
    record = TensorRecord("missing", None, "roi_heads.mask_head.deconv.weight", None, (1,))
    with pytest.raises(UserError, match="it was trained with, which is configs/x.yaml, or"):
        Conversion(Layout.PUBLISHED, {}, [record], ", which is configs/x.yaml").check()


GATES = {
    "se": {"MODEL.APA.GATE": "se"},
    "plain_se": {"MODEL.APA.GATE": "plain_se"},
    "cbam": {"MODEL.APA.GATE": "cbam"},
    "cbam_sigmoid": {"MODEL.APA.GATE": "cbam", "MODEL.APA.GATE_SPATIAL_ACTIVATION": "sigmoid"},
    "spatial": {"MODEL.APA.GATE": "spatial"},
    "spatial_sigmoid": {
        "MODEL.APA.GATE": "spatial",
        "MODEL.APA.GATE_SPATIAL_ACTIVATION": "sigmoid",
    },
    "none": {"MODEL.APA.GATE": "none"},
}


@pytest.fixture(scope="module")
def classifiers(published):
    """State dicts of zeros."""
    states = {}
    for gate in GATES:
        with torch.device("meta"):
            state = published.SEResNet(gate=gate, num_classes=2).state_dict()
        states[gate] = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
    return states


def backbone_of(cfg):
    """A model that has only the backbone of a detector."""
    return nn.ModuleDict({"backbone": build_backbone(cfg)})


@pytest.mark.parametrize(
    "ours, theirs",
    [("se", "plain_se"), ("plain_se", "se"), ("cbam", "cbam_sigmoid")],
)
def test_no_part_of_a_gate(ours, theirs, classifiers, make_cfg, tmp_path):
    """A file fills each gate of the model, or none of them, or it is an error that says how."""
    model = backbone_of(make_cfg(4, gate=ours))
    files = {gate: str(tmp_path / f"{gate}.pth") for gate in (theirs, "none")}
    for gate, file in files.items():
        torch.save({"model": classifiers[gate]}, file)
    checkpointer = StrictCheckpointer(model, strict=False)
    checkpointer.load(files["none"])
    with pytest.raises(UserError, match=r"does not fit the model: .*(gate|se|cbam)\."):
        convert({"model": classifiers[theirs]}, model).check()
    settings = ", ".join(f"{key} to {value}" for key, value in GATES[theirs].items())
    with pytest.raises(UserError, match=f"The gates differ: .* Set {settings}; or"):
        checkpointer.load(files[theirs])
    StrictCheckpointer(model, strict=False, reinitialized=["*gate.*"]).load(files[theirs])


def test_gates_of_other_sizes(make_cfg, tmp_path):
    theirs, ours = (backbone_of(make_cfg(4, per_channel=value)) for value in (True, False))
    path = str(tmp_path / "per_channel.pth")
    torch.save({"model": theirs.state_dict(), "__author__": "apa_det"}, path)
    message = (
        r"res2.0.gate.activation.lambda_param has the shape \(1, 256, 1, 1\) in the file, and "
        r"\(1,\) in the model. Set MODEL.APA.GATE_PER_CHANNEL and"
    )
    with pytest.raises(UserError, match=message):
        StrictCheckpointer(ours, strict=False).load(path)


@pytest.mark.parametrize("gate", GATES)
def test_gate_settings(gate, classifiers):
    names = convert({"model": classifiers[gate]}).state
    assert gate_settings(names) == GATES[gate]


@pytest.mark.parametrize("gate", ["plain_se", "cbam_sigmoid", "spatial_sigmoid"])
@torch.no_grad()
def test_features(gate, published, make_cfg):
    """Of ReLU baselines, and of the other variants of CBAM."""
    aglu = gate != "plain_se"
    theirs = published.randomize(published.SEResNet(gate=gate, num_classes=2, aglu=aglu))
    model = backbone_of(make_cfg(4, gate=gate, aglu=aglu)).eval()
    conversion = convert({"model": theirs.state_dict()}, model)
    conversion.check()
    model.load_state_dict(conversion.state, strict=False)
    image = torch.rand(1, 3, 64, 96)
    features = model["backbone"].bottom_up(image)
    for level, expected in zip(features.values(), theirs(image), strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)
    back = reverse(conversion.state).state
    assert {f"backbone.{name}" for name in theirs.state_dict() if "fc." not in name} == back.keys()
