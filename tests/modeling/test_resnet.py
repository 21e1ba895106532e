"""Compare the backbones with detectron2's and with the published layout."""

import pytest
import torch
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from apa_det import AGLU, APA, add_apa_config
from apa_det.errors import UserError
from apa_det.layers import CBAMGate, EvalBatchNorm2d, SEGate, Swish
from apa_det.modeling import make_apa_resnet

IMAGE = ShapeSpec(channels=3)


def make_cfg(**overrides):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = "build_apa_resnet_backbone"
    cfg.MODEL.RESNETS.NORM = "BN"
    for key, value in overrides.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    if cfg.MODEL.RESNETS.DEPTH < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return cfg


def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            scale = value.std().nan_to_num(0) if value.numel() > 1 else 0
            positive = name.endswith(("running_var", "norm.weight"))
            value.copy_(noise + 0.5 if positive else value + 0.1 * scale * noise)
    return model


DEEPLAB = dict(STEM_OUT_CHANNELS=128, STRIDE_IN_1X1=False, WIDTH_PER_GROUP=8)


@pytest.mark.parametrize(
    "overrides",
    [
        DEEPLAB,
        dict(WIDTH_PER_GROUP=8, STEM_TYPE="basic", RES4_DILATION=2, RES5_DILATION=4),
        dict(WIDTH_PER_GROUP=8, STEM_TYPE="basic", RES5_DILATION=2, RES5_MULTI_GRID=[1, 2, 1]),
    ],
    ids=["stem", "dilated", "multi-grid"],
)
def test_keys_of_deeplab(overrides):
    """Against the backbone of detectron2's DeepLab project."""
    cfg = make_cfg()
    add_deeplab_config(cfg)
    cfg.MODEL.RESNETS.update(overrides)
    ours, theirs = (
        BACKBONE_REGISTRY.get(name)(cfg, IMAGE)
        for name in ("build_apa_resnet_backbone", "build_resnet_deeplab_backbone")
    )
    ours.load_state_dict(randomize(theirs).state_dict())
    x = torch.randn(1, 3, 96, 64)
    assert all(torch.equal(y, theirs.eval()(x)[name]) for name, y in ours.eval()(x).items())


def test_deeplab_stem():
    """Fused and unfused stems agree; frozen, only its activations train."""
    cfg = make_cfg(MODEL__APA__ACTIVATION="aglu", MODEL__BACKBONE__FREEZE_AT=1)
    add_deeplab_config(cfg)
    cfg.MODEL.RESNETS.update(DEEPLAB)
    stem = randomize(build_backbone(cfg)).stem.eval()
    trained = {name for name, p in stem.named_parameters() if p.requires_grad}
    assert trained == {f"act{k}.{name}_param" for k in (1, 2, 3) for name in ("lambda", "kappa")}
    x = torch.randn(2, 3, 32, 32)
    fused = stem(x)
    stem.fuse = False
    torch.testing.assert_close(fused, stem(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.script(stem)(x), stem(x))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("RESNETS.BLUR", 1, "RESNETS.BLUR 1 has no effect .*: del cfg.MODEL.RESNETS.BLUR, or use"),
        ("RESNETS.DEFORM_INTERVAL", 2, "DEFORM_INTERVAL 2 has no effect .*: set it to 1, or use"),
        ("BACKBONE.ANTI_ALIAS", True, "ANTI_ALIAS True has no effect"),
        ("FCOS.TOP_LEVELS", 1, "TOP_LEVELS 1 has no effect .*: set it to 2"),
        ("RESNETS.STEM_TYPE", "deep", "STEM_TYPE must be basic or deeplab, got 'deep'"),
        ("RESNETS.RES5_MULTI_GRID", [1, 2], r"MULTI_GRID must be 3 integers >= 1, .* \[1, 2\]"),
        ("RESNETS.RES4_DILATION", 2, "RES5_DILATION must be 4 with RES4_DILATION 2, got 1"),
        ("FPN.TOP_BLOCK_IN_FEATURE", "p6", "must be res5 or p5, .*; got 'p6'"),
    ],
)
def test_keys_of_other_backbones(key, value, message):
    """Keys that change nothing are accepted, all others are refused."""
    cfg = make_cfg(MODEL__BACKBONE__NAME="build_apa_retinanet_resnet_fpn_backbone")
    cfg.MODEL.RESNETS.DEFORM_INTERVAL, cfg.MODEL.BACKBONE.ANTI_ALIAS = 1, False
    cfg.MODEL.FCOS = CfgNode({"TOP_LEVELS": 2})
    build_backbone(cfg)
    node, name = key.split(".")
    cfg.MODEL[node][name] = value
    with pytest.raises(UserError, match=message):
        build_backbone(cfg)


@pytest.mark.parametrize("feature, channels", [("res5", 512), ("p5", 32)])
def test_p6_and_p7_from_p5(feature, channels):
    cfg = make_cfg(
        MODEL__RESNETS__DEPTH=18,
        MODEL__FPN__OUT_CHANNELS=32,
        MODEL__FPN__TOP_BLOCK_IN_FEATURE=feature,
        MODEL__BACKBONE__NAME="build_apa_retinanet_resnet_fpn_backbone",
    )
    backbone = build_backbone(cfg).eval()
    assert backbone.top_block.p6.in_channels == channels
    x = torch.randn(1, 3, 128, 128)
    features = backbone(x)
    source = {**backbone.bottom_up(x), **features}[feature]
    p6 = backbone.top_block.p6(source)
    assert torch.equal(features["p6"], p6)
    assert torch.equal(features["p7"], backbone.top_block.p7(p6.relu()))


@pytest.mark.parametrize(
    "name",
    ["resnet_backbone", "resnet_fpn_backbone", "retinanet_resnet_fpn_backbone"],
)
@pytest.mark.parametrize(
    "overrides",
    [
        dict(MODEL__RESNETS__DEPTH=18),
        dict(MODEL__RESNETS__DEPTH=50, MODEL__RESNETS__STRIDE_IN_1X1=False),
        dict(
            MODEL__RESNETS__DEPTH=50,
            MODEL__RESNETS__NUM_GROUPS=8,
            MODEL__RESNETS__WIDTH_PER_GROUP=4,
            MODEL__RESNETS__RES5_DILATION=2,
            MODEL__RESNETS__NORM="GN",
            MODEL__RESNETS__RES2_OUT_CHANNELS=128,
            MODEL__BACKBONE__FREEZE_AT=3,
        ),
        dict(
            MODEL__RESNETS__DEPTH=34,
            MODEL__RESNETS__NORM="FrozenBN",
            MODEL__BACKBONE__FREEZE_AT=0,
        ),
    ],
    ids=["18", "50", "next50-gn-dilated", "34-frozen"],
)
def test_switched_off_is_detectron2(name, overrides):
    if "fpn" in name:  # needs the strides 4, 8, 16, 32
        overrides = {**overrides, "MODEL__RESNETS__RES5_DILATION": 1}
    cfg = make_cfg(**overrides)
    cfg.MODEL.BACKBONE.NAME = f"build_{name}"
    theirs = randomize(build_backbone(cfg, IMAGE))
    cfg.MODEL.BACKBONE.NAME = f"build_apa_{name}"
    ours = build_backbone(cfg, IMAGE)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    trainable = {n for n, p in theirs.named_parameters() if p.requires_grad}
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == trainable
    assert ours.output_shape() == theirs.output_shape()
    x = torch.randn(2, 3, 64, 96)
    for training in (True, False):
        features, expected = ours.train(training)(x), theirs.train(training)(x)
        for level in expected:
            assert torch.equal(features[level], expected[level])


@pytest.mark.parametrize("depth,blocks", [(101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))])
def test_deep(depth, blocks):
    backbone = build_backbone(make_cfg(MODEL__RESNETS__DEPTH=depth), IMAGE)
    assert tuple(len(stage) for stage in backbone.stages) == blocks


def published(**overrides):
    """Config of the published backbone: AGLU, APA in SE gates, EvalBN, frozen first stage."""
    return make_cfg(
        MODEL__APA__ACTIVATION="aglu",
        MODEL__APA__GATE="se",
        MODEL__RESNETS__STRIDE_IN_1X1=False,
        MODEL__RESNETS__NORM="EvalBN",
        MODEL__BACKBONE__FREEZE_AT=2,
        **overrides,
    )


def test_published_layout():
    model = build_backbone(published(), IMAGE)
    block = model.res3[0]
    x = torch.randn(2, 256, 16, 16)
    shapes = {}
    for name in ("act1", "act2", "act3"):
        assert type(getattr(block, name)) is AGLU
        getattr(block, name).register_forward_hook(
            lambda _, inputs, __, name=name: shapes.update({name: inputs[0].shape[1:]})
        )
    block.eval()(x)
    assert shapes == {"act1": (128, 16, 16), "act2": (128, 8, 8), "act3": (512, 8, 8)}
    assert len({id(block.act1), id(block.act2), id(block.act3)}) == 3

    gate = block.gate
    assert type(gate.activation) is APA
    assert [tuple(p.shape) for p in (gate.norm.weight, gate.fc1.weight, gate.fc2.weight)] == [
        (512,),
        (32, 512),
        (512, 32),
    ]
    assert gate.fc1.bias is None and gate.fc2.bias is None and gate.dropout.p == 0.1
    for module, low, high in [(gate.activation, -1, 0), (block.act1, 1, 1.3)]:
        assert module.lambda_param.shape == (1,)
        assert 0 <= module.lambda_param.item() <= 1
        assert low <= module.kappa_param.item() <= high


def test_published_forward():
    """Compare a block with the formulas of the paper."""
    block = build_backbone(published(), IMAGE).res4[0].eval()
    randomize(block)

    def eta(z, act):
        lam, kappa = act.lambda_param, act.kappa_param
        return (lam * torch.exp(-kappa * z) + 1) ** (-1 / lam)

    def gate(z):
        g = block.gate
        pooled = nn.functional.layer_norm(z.mean((2, 3)), z.shape[1:2], g.norm.weight, g.norm.bias)
        hidden = torch.relu(pooled @ g.fc1.weight.T)
        return z * eta(hidden @ g.fc2.weight.T, g.activation)[:, :, None, None]

    x = torch.randn(2, 512, 9, 7)
    z1 = block.conv1(x)
    z2 = block.conv2(z1 * eta(z1, block.act1))
    z3 = block.conv3(z2 * eta(z2, block.act2))
    z4 = gate(z3) + block.shortcut(x)
    torch.testing.assert_close(block(x), z4 * eta(z4, block.act3), rtol=1e-4, atol=1e-5)


def test_published_freezing():
    model = build_backbone(published(), IMAGE).train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    expected = {n for n, _ in model.named_parameters() if n.startswith(("stem.conv1", "res2"))}
    assert frozen == expected
    assert model.stem.act.lambda_param.requires_grad
    assert all(m.p == 0 for m in model.res2.modules() if isinstance(m, nn.Dropout))
    assert all(m.p == 0.1 for m in model.res3.modules() if isinstance(m, nn.Dropout))
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.res2.modules())

    before = {n: b.clone() for n, b in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert model.res3[0].conv1.norm.weight.grad is not None
    no_gradient = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not no_gradient


def test_frozen_blocks_save_memory_with_the_same_gradients():
    model = randomize(build_backbone(published(), IMAGE).train())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(1, 3, 64, 64)

    def gradients_and_stored():
        sizes = {}

        def record(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            out = model(x)["res5"]
        out.square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return gradients, sum(sizes.values())

    gradients, stored = gradients_and_stored()
    for block in model.res2:
        block.recompute = False
    expected, stored_without = gradients_and_stored()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])
    # Each block stores its input, not its maps of 64, 64 and 256 channels; the first has a shortcut
    pixels = 16 * 16 * 4
    assert stored_without - stored > (3 * (64 + 64 + 256) + 256 - 64) * pixels


def test_eval_batch_norm_equals_batch_norm_in_eval():
    norm, reference = EvalBatchNorm2d(5), nn.BatchNorm2d(5).eval()
    randomize(reference)
    norm.load_state_dict(reference.state_dict())
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(norm.train()(x), reference(x))


@pytest.mark.parametrize(
    "activation",
    ["aglu", "relu", "silu", "gelu", "mish", "leaky_relu", "elu", "hardswish", "swish"],
)
@pytest.mark.parametrize("gate", ["none", "se", "cbam"])
def test_every_setting_trains(activation, gate):
    cfg = make_cfg(MODEL__RESNETS__DEPTH=18, MODEL__APA__ACTIVATION=activation)
    cfg.MODEL.APA.GATE = gate
    cfg.MODEL.APA.GATE_ACTIVATION = "sigmoid" if activation == "silu" else "apa"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = build_backbone(cfg, IMAGE)
    model(torch.randn(2, 3, 64, 64))["res5"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    "activation,expected", [("aglu", "lambda_param"), ("prelu", "weight"), ("swish", "beta")]
)
def test_per_channel(activation, expected):
    cfg = make_cfg(MODEL__RESNETS__DEPTH=18, MODEL__APA__ACTIVATION=activation)
    cfg.MODEL.APA.PER_CHANNEL = True
    model = build_backbone(cfg, IMAGE)
    parameter = dict(model.res4[0].act1.named_parameters())[expected]
    assert parameter.numel() == 256
    model(torch.randn(1, 3, 64, 64))["res5"].sum().backward()
    assert parameter.grad.unique().numel() > 1


def test_per_stage():
    """Yaml keys and a lazy config's lists give the same model."""
    activations = ["gelu", "relu", "prelu", "swish", "aglu"]
    cfg = make_cfg(MODEL__RESNETS__DEPTH=18, MODEL__APA__GATE_TOP_SHARE=0.5)
    cfg.merge_from_list(["MODEL.APA.ACTIVATION_PER_STAGE", activations])
    cfg.merge_from_list(["MODEL.APA.GATE_PER_STAGE", "['none', 'none', 'cbam', 'se']"])
    model = build_backbone(cfg, IMAGE)
    kinds = [nn.GELU, nn.ReLU, nn.PReLU, Swish, AGLU]
    assert type(model.stem.act) is kinds[0]
    for kind, gate, stage in zip(
        kinds[1:], [None, None, CBAMGate, SEGate], model.stages, strict=True
    ):
        for block in stage:
            assert type(block.act1) is type(block.act2) is kind
            assert type(block.gate) is (gate or type(None))
    assert model.res5[0].gate.top_share == 0.5
    model(torch.randn(1, 3, 64, 64))["res5"].sum().backward()

    lazy = LazyCall(make_apa_resnet)(
        depth=18, activation=activations, gate=["none", "none", "cbam", "se"]
    )
    assert list(instantiate(lazy).state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    "overrides,message",
    [
        (
            dict(MODEL__APA__ACTIVATION_PER_STAGE=["aglu"] * 4),
            "ACTIVATION_PER_STAGE must have 5 entries, one for each of stem, res2.* got 4",
        ),
        (
            dict(MODEL__APA__GATE_PER_STAGE=["se"] * 5),
            "GATE_PER_STAGE must have 4 entries, one for each of res2, .* got 5",
        ),
        (dict(MODEL__APA__ACTIVATION="swash"), "Unknown activation 'swash'.*aglu"),
        (dict(MODEL__APA__GATE="sse"), "Unknown gate 'sse'.*cbam"),
        (
            dict(MODEL__APA__GATE="se", MODEL__APA__GATE_ACTIVATION="tanh"),
            "Unknown gate activation 'tanh'",
        ),
        (dict(MODEL__RESNETS__DEPTH=20), "DEPTH must be one of 18, .* got 20"),
        (
            dict(MODEL__RESNETS__DEPTH=18, MODEL__RESNETS__NUM_GROUPS=2),
            "NUM_GROUPS must be 1 for DEPTH 18, got 2",
        ),
        (dict(MODEL__RESNETS__RES5_DILATION=3), "RES5_DILATION must be 1, 2 or 4, got 3"),
    ],
)
def test_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        build_backbone(make_cfg(**overrides), IMAGE)
