import pickle

import pytest
import torch
import torchvision
from detectron2.modeling import build_model

from apa_det.checkpoint import Layout, adapt, convert, load_checkpoint, reverse
from apa_det.checkpoint.names import to_detectron2, to_published
from apa_det.errors import UserError

UNSET = ("num_batches_tracked",)

NAMES = {
    "backbone.conv1.weight": "backbone.bottom_up.stem.conv1.weight",
    "backbone.bn1.running_var": "backbone.bottom_up.stem.conv1.norm.running_var",
    "backbone.relu.kappa_param": "backbone.bottom_up.stem.act.kappa_param",
    "backbone.layer1.2.conv3.weight": "backbone.bottom_up.res2.2.conv3.weight",
    "backbone.layer3.22.bn2.bias": "backbone.bottom_up.res4.22.conv2.norm.bias",
    "backbone.layer4.0.unirect3.lambda_param": "backbone.bottom_up.res5.0.act3.lambda_param",
    "backbone.layer2.0.downsample.0.weight": "backbone.bottom_up.res3.0.shortcut.weight",
    "backbone.layer2.0.downsample.1.bias": "backbone.bottom_up.res3.0.shortcut.norm.bias",
    "backbone.layer2.3.se.norm.weight": "backbone.bottom_up.res3.3.gate.norm.weight",
    "backbone.layer2.3.se.excitation.0.weight": "backbone.bottom_up.res3.3.gate.fc1.weight",
    "backbone.layer2.3.se.excitation.2.weight": "backbone.bottom_up.res3.3.gate.fc2.weight",
    "backbone.layer2.3.se.uniact.lambda_param": (
        "backbone.bottom_up.res3.3.gate.activation.lambda_param"
    ),
    "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral2.weight",
    "neck.fpn_convs.3.conv.bias": "backbone.fpn_output5.bias",
    "rpn_head.rpn_conv.weight": "proposal_generator.rpn_head.conv.weight",
    "rpn_head.rpn_cls.bias": "proposal_generator.rpn_head.objectness_logits.bias",
    "rpn_head.rpn_reg.bias": "proposal_generator.rpn_head.anchor_deltas.bias",
    "roi_head.bbox_head.shared_fcs.1.weight": "roi_heads.box_head.fc2.weight",
    "roi_head.bbox_head.fc_cls.weight": "roi_heads.box_predictor.cls_score.weight",
    "roi_head.bbox_head.fc_cls.g": "roi_heads.box_predictor.cls_score.g",
    "roi_head.bbox_head.2.fc_reg.bias": "roi_heads.box_predictor.2.bbox_pred.bias",
    "roi_head.bbox_head.1.shared_fcs.0.bias": "roi_heads.box_head.1.fc1.bias",
    "roi_head.mask_head.convs.3.conv.weight": "roi_heads.mask_head.mask_fcn4.weight",
    "roi_head.mask_head.upsample.weight": "roi_heads.mask_head.deconv.weight",
    "roi_head.mask_head.upsample.channel_compressor.bias": (
        "roi_heads.mask_head.upsample.channel_compressor.bias"
    ),
    "roi_head.mask_head.upsample.content_encoder.bias": (
        "roi_heads.mask_head.upsample.content_encoder.bias"
    ),
    "roi_head.mask_head.2.conv_logits.bias": "roi_heads.mask_head.2.predictor.bias",
    "roi_head.mask_head.conv_logits.tempearture": "roi_heads.mask_head.predictor.temperature",
}
CBAM_NAMES = {
    "cbam.ChannelGate.norm.weight": "gate.norm.weight",
    "cbam.ChannelGate.mlp.1.bias": "gate.fc1.bias",
    "cbam.ChannelGate.mlp.3.weight": "gate.fc2.weight",
    "cbam.ChannelGate.uniact.kappa_param": "gate.activation.kappa_param",
    "cbam.SpatialGate.spatial.conv.weight": "gate.spatial_conv.weight",
    "cbam.SpatialGate.spatial.bn.running_mean": "gate.spatial_norm.running_mean",
    "cbam.SpatialGate.uniact.lambda_param": "gate.spatial_activation.lambda_param",
}


def test_names():
    for theirs, ours in NAMES.items():
        assert to_detectron2(theirs) == ours
        assert to_published(ours) == theirs
    for theirs, ours in CBAM_NAMES.items():
        theirs = f"backbone.layer4.1.{theirs}"
        ours = f"backbone.bottom_up.res5.1.{ours}"
        assert to_detectron2(theirs) == ours
        assert to_published(ours, cbam=True) == theirs
    for name in (
        "roi_head.mask_head.3.conv_logits.weight",
        "backbone.layer5.0.bn1.bias",
        "fc.bias",
    ):
        assert to_detectron2(name) is None


CASES = {
    "mask": dict(),
    "R-101": dict(depth=101),
    "cbam": dict(gate="cbam", per_channel=True),
    "cascade": dict(classifier="wrapped_cauchy", cascade=True, masks=False),
    "cascade masks": dict(classifier="normed_sigmoid", gate="plain_se", cascade=True),
}


@pytest.fixture(scope="module")
def states(published):
    """State dicts of published detectors of 4 classes."""
    torch.manual_seed(0)
    return {case: published.Detector(4, **options).state_dict() for case, options in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, states, tmp_path):
    torch.save({"state_dict": states[case]}, tmp_path / "file.pth")
    conversion = convert(load_checkpoint(str(tmp_path / "file.pth")))
    conversion.check()
    back = reverse(conversion.state)
    back.check()
    assert back.state.keys() == states[case].keys()
    for name, tensor in states[case].items():
        assert back.state[name].dtype == tensor.dtype and torch.equal(back.state[name], tensor)
    again = convert({"model": back.state})
    assert again.state.keys() == conversion.state.keys()


@pytest.fixture(scope="module")
def model(make_cfg):
    return build_model(make_cfg(4))


def statuses(conversion):
    return {a.source or a.target: a.status for a in conversion.records}


def test_conversion_without_a_model_fits_the_model(states, model):
    """One-element tensors get the shapes of the model even if no model is given."""
    state = convert({"state_dict": states["mask"]}).state
    expected = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: state[name].shape for name in expected} == expected


def test_round_trip_of_a_model(model):
    state = model.state_dict()
    there = reverse(state)
    there.check()
    assert all(tensor.shape == (1,) for name, tensor in there.state.items() if "lambda" in name)
    back = convert({"state_dict": there.state}, model)
    back.check()
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[name], tensor) for name, tensor in state.items())


def test_full_match(states, model):
    conversion = convert({"state_dict": states["mask"]}, model)
    conversion.check()
    assert conversion.layout is Layout.PUBLISHED
    assert set(statuses(conversion).values()) == {"renamed"}
    assert len(conversion.records) == len(states["mask"])
    assert not conversion.unfilled()
    table = conversion.table()
    assert "backbone.layer4.2.se.uniact.{lambda_param, kappa_param}" in table
    assert "backbone.bottom_up.res5.2.gate.activation.{lambda_param, kappa_param}" in table
    assert table.endswith(f"{len(states['mask'])} renamed")


def test_misfits(states, model):
    state = {
        **states["mask"],
        "roi_head.bbox_head.fc_cls.weight": torch.zeros(5, 1024),
        "roi_head.bbox_head.fc_cls.bias": torch.zeros(5),
        "roi_head.glbctx_head.fc.weights": torch.zeros(2),
    }
    del state["neck.fpn_convs.2.conv.weight"]
    del state["backbone.layer3.1.unirect2.lambda_param"]
    conversion = convert({"state_dict": state}, model)
    status_of = statuses(conversion)
    assert status_of["roi_head.bbox_head.fc_cls.weight"] == "wrong shape"
    assert status_of["roi_head.glbctx_head.fc.weights"] == "unexpected"
    assert status_of["backbone.fpn_output4.weight"] == "missing"
    assert status_of["backbone.bottom_up.res4.1.act2.lambda_param"] == "missing"
    assert set(conversion.unfilled()) == {
        "roi_heads.box_predictor.cls_score.{weight, bias}",
        "backbone.fpn_output4.weight",
        "backbone.bottom_up.res4.1.act2.lambda_param",
    }
    assert "roi_heads.box_predictor.cls_score.weight" not in conversion.state
    assert "(5, 1024) for (4, 1024)" in conversion.table()
    with pytest.raises(
        UserError,
        match=r"\(published detector\) does not fit the model: roi_head.bbox_head.fc_cls.weight "
        r"has shape \(5, 1024\), but .* \(4, 1024\) \(2 wrong shape, 1 unexpected, 2 missing\)",
    ):
        conversion.check()


@pytest.mark.parametrize("gate", ["se", "cbam"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_classifier(gate, prefix, published, make_cfg):
    theirs = published.randomize(published.SEResNet(gate=gate, num_classes=10))
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    model = build_model(make_cfg(4, gate=gate))
    conversion = convert({"model": state, "epoch": 99}, model)
    conversion.check()
    assert conversion.layout is Layout.CLASSIFIER
    status_of = statuses(conversion)
    assert status_of["fc.weight"] == status_of["fc.bias"] == "ignored"
    rest = {name for name in model.state_dict() if not name.startswith("backbone.bottom_up.")}
    assert rest == {name for name, status in status_of.items() if status == "initialized"}
    model.load_state_dict(conversion.state, strict=False)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = model.eval().backbone.bottom_up(image)
        for level, expected in zip(features.values(), theirs(image), strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)

    incomplete = {name: tensor for name, tensor in state.items() if "layer2.1.bn1" not in name}
    with pytest.raises(UserError, match="res3.1.conv1.norm.weight is missing"):
        convert({"model": incomplete}, model).check()


def small_cfg(make_cfg, activation="relu", gate="none"):
    cfg = make_cfg(4, depth=18, gate=gate)
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.APA.ACTIVATION = activation
    return cfg


def test_torchvision(make_cfg):
    theirs = torchvision.models.resnet18(weights=None).eval()
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
    model = build_model(small_cfg(make_cfg)).eval()
    conversion = convert(dict(theirs.state_dict()), model)
    conversion.check()
    assert conversion.layout is Layout.TORCHVISION
    model.load_state_dict(conversion.state, strict=False)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for k in range(1, 5):
            expected = getattr(theirs, f"layer{k}")(expected)
        features = model.backbone.bottom_up(image)["res5"]
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)

    model = build_model(small_cfg(make_cfg, "aglu", "cbam"))
    conversion = convert(dict(theirs.state_dict()), model)
    conversion.check()
    initialized = [n for n, status in statuses(conversion).items() if status == "initialized"]
    assert "backbone.bottom_up.stem.act.lambda_param" in initialized
    assert "backbone.bottom_up.res3.1.gate.spatial_norm.running_mean" in initialized
    assert not any(".conv1." in name and "bottom_up" in name for name in initialized)


def test_backbone_without_fpn(make_cfg):
    cfg = small_cfg(make_cfg)
    cfg.MODEL.BACKBONE.NAME = "build_apa_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.MASK_ON = False
    model = build_model(cfg)
    state = torchvision.models.resnet18(weights=None).state_dict()
    state = {name: tensor for name, tensor in state.items() if "layer4" not in name}
    conversion = convert(state, model)
    conversion.check()
    assert "backbone.res4.1.conv2.norm.weight" in conversion.state
    back = reverse(conversion.state)
    assert "backbone.layer3.1.bn2.weight" in back.state


def zoo_names(state):
    """Rename torchvision's weights as in detectron2's model zoo."""
    for name, tensor in state.items():
        if "layer" not in name:
            name = "stem." + name
        for k in range(1, 5):
            name = name.replace(f"layer{k}", f"res{k + 1}").replace(f"bn{k}", f"conv{k}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        yield name, tensor


@pytest.fixture(scope="module")
def small_model(make_cfg):
    return build_model(small_cfg(make_cfg))


def test_model_zoo(small_model, tmp_path):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in zoo_names(theirs)}
    zoo = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(zoo))
    checkpoint = load_checkpoint(str(tmp_path / "R-18.pkl"))
    conversion = convert(checkpoint, small_model)
    conversion.check()
    assert conversion.layout is Layout.ZOO
    expected = convert(dict(theirs), small_model).state
    assert {k for k in conversion.state if not k.endswith(UNSET)} == {
        k for k in expected if not k.endswith(UNSET)
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in conversion.state.items())
    assert statuses(conversion)["stem.fc.weight"] == "ignored"
    with pytest.raises(UserError, match="Give the model's config"):
        convert(checkpoint)


def test_caffe2(small_model):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    kinds = {"weight": "w", "bias": "b"}
    arrays = {"fc1000_w": torch.zeros(1000, 512), "conv1_w": theirs["conv1.weight"]}
    for name, tensor in zoo_names(theirs):
        module, _, kind = name.rpartition(".")
        if ".conv" in name and module.startswith("res") and kind in kinds:
            for k, branch in enumerate("ab", start=1):
                module = module.replace(f".conv{k}.norm", f"_branch2{branch}_bn")
                module = module.replace(f".conv{k}", f"_branch2{branch}")
            kind = "s" if module.endswith("bn") and kind == "weight" else kinds[kind]
            arrays[f"{module.replace('.', '_')}_{kind}"] = tensor
    conversion = convert({"blobs": {**arrays, "conv1_w_momentum": torch.ones(1)}}, small_model)
    assert conversion.layout is Layout.CAFFE2
    name = "backbone.bottom_up.res4.1.conv2.norm.weight"
    assert torch.equal(conversion.state[name], theirs["layer3.1.bn2.weight"])
    status_of = statuses(conversion)
    assert status_of["conv1_w"] == "renamed"
    assert status_of["fc1000_w"] == status_of["conv1_w_momentum"] == "ignored"


def test_detectron2(small_model):
    state = small_model.state_dict()
    conversion = convert({"model": state, "iteration": 3}, small_model)
    conversion.check()
    assert conversion.layout is Layout.DETECTRON2
    assert conversion.state.keys() == state.keys()
    assert set(statuses(conversion).values()) == {"same name"}
    with pytest.raises(UserError, match="1 missing"):
        missing = {k: v for k, v in state.items() if k != "backbone.fpn_output2.bias"}
        convert({"model": missing}, small_model).check()


def test_unknown_layout():
    with pytest.raises(
        UserError, match="Unknown checkpoint layout, with names like encoder.weight"
    ):
        convert({"model": {"encoder.weight": torch.zeros(1)}})


def test_adapt(states, model, small_model, make_cfg):
    own = {"model": model.state_dict(), "iteration": 7}
    assert adapt(own, model) == {**own, "matching_heuristics": False}
    assert adapt(model.state_dict(), model)["model"].keys() == model.state_dict().keys()

    other = {**states["mask"], "roi_head.extra.weight": torch.zeros(1)}
    adapted = adapt({"state_dict": other, "meta": {}, "optimizer": {}}, model)
    assert adapted.keys() == {"model"}
    assert adapted["model"].keys() >= model.state_dict().keys() | {"roi_head.extra.weight"}

    resnet = torchvision.models.resnet18(weights=None).state_dict()
    adapted = adapt({"model": resnet, "epoch": 1}, small_model)
    assert "backbone.bottom_up.res2.0.conv1.weight" in adapted["model"]
    zoo = adapt({"model": dict(zoo_names(resnet)), "__author__": "us"}, small_model)
    assert zoo["matching_heuristics"] is True and zoo["__author__"] == "us"
    caffe2 = adapt({"conv1_w": torch.ones(1), "conv1_w_momentum": torch.ones(1)}, small_model)
    assert caffe2 == {
        "model": {"conv1_w": torch.ones(1)},
        "__author__": "Caffe2",
        "matching_heuristics": True,
    }
    pycls = adapt({"model_state": {"s1.b1.weight": torch.ones(1)}}, small_model)
    assert pycls["matching_heuristics"] is True
    unknown = {"model": {"encoder.weight": torch.ones(1)}, "epoch": 1}
    assert adapt(unknown, small_model) == {**unknown, "matching_heuristics": False}
