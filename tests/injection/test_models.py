"""Injection into layers of detectron2 and classifiers of torchvision and timm."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn

from apa_det import AGLU, APA, inject, restore
from apa_det.modeling import make_apa_resnet

from .conftest import SILU, injected_names


def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def distance(model, x, expected):
    with torch.no_grad():
        return ((model(x) - expected).norm() / expected.norm()).item()


# ------------------------------------------------------------------- detectron2


@pytest.mark.parametrize("depth", [18, 50])
def test_same_names_as_make_apa_resnet(depth):
    """Checkpoints of either model can be loaded into the other."""
    ours = make_apa_resnet(depth, activation="aglu")
    theirs = make_apa_resnet(depth, activation="relu")
    block = BasicBlock if depth == 18 else BottleneckBlock
    for module in theirs.modules():  # convert to detectron2's classes
        if hasattr(module, "act"):
            del module.act
            module.__class__ = BasicStem
        elif hasattr(module, "act1"):
            for name in ("act1", "act2", "act3"):
                module._modules.pop(name, None)
            module.__class__ = block
    plain = [*theirs.state_dict()]
    replaced = inject(theirs)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert {*replaced} == {*injected_names(ours)} and {*replaced.values()} == {F.relu_}
    theirs.load_state_dict(ours.state_dict())
    x = images()
    for level, feature in ours.eval()(x).items():
        assert torch.equal(theirs.eval()(x)[level], feature)
    restore(theirs)
    assert [*theirs.state_dict()] == plain


def test_activation_of_a_convolution():
    """An attribute that is a function becomes a module, and restore sets the function again."""
    conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4), activation=F.relu).eval()
    x = images()
    expected = conv(x)
    assert inject(conv, **SILU) == {"activation": F.relu}
    torch.testing.assert_close(conv(x), F.silu(conv.norm(F.conv2d(x, conv.weight, conv.bias))))
    restore(conv)
    assert conv.activation is F.relu and torch.equal(conv(x), expected)


def test_one_location_for_all_levels():
    """A head that runs on several levels has one module per call in its source."""
    block = LastLevelP6P7(4, 4)
    inject(block)
    block(torch.randn(1, 4, 16, 16))
    block(torch.randn(1, 4, 8, 8))
    assert injected_names(block) == ["act"] and len([*block.act.parameters()]) == 2


def test_frozen_layers():
    model = make_apa_resnet(18, activation="relu", freeze_at=2)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    inject(model)
    assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert model.stem.act.kappa_param.requires_grad


# ------------------------------------------------------------------- torchvision and timm


def resnet(block=torchvision.models.resnet.Bottleneck):
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5, width_per_group=16)


def vision_transformer():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    nn.init.normal_(model.heads.head.weight)  # zero-initialized
    return model


def mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=5)


def efficientnet():
    block = torchvision.models.efficientnet.MBConvConfig
    return torchvision.models.EfficientNet(
        [block(4, 3, 2, 16, 16, 1), block(4, 3, 2, 16, 24, 1)], dropout=0.0, num_classes=5
    )


def regnet():
    parameters = torchvision.models.regnet.BlockParams.from_init_params(
        depth=5, w_0=8, w_a=14.0, w_m=2.0, group_width=4, se_ratio=0.25
    )
    return torchvision.models.RegNet(parameters, num_classes=5)


def convnext():
    config = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([config(8, 16, 1), config(16, None, 1)], num_classes=5)


def swin():
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[4, 4]
    )


def timm(name, **kwargs):
    def build():
        models = pytest.importorskip("timm")
        return models.create_model(name, num_classes=5, **kwargs)

    return build


MODELS = {  # some of their locations; the tolerance of outputs with like="replaced"
    "resnet": (resnet, ["relu", "layer2.0.relu1", "layer2.0.relu3"], 0.01),
    "vision_transformer": (vision_transformer, ["encoder.layers.encoder_layer_1.mlp.1"], 0.03),
    "efficientnet": (
        efficientnet,
        [
            "features.0.2",
            "features.1.0.block.2.activation",
            "features.1.0.block.2.scale_activation",
        ],
        1e-4,
    ),
    "regnet": (
        regnet,
        ["stem.2", "trunk_output.block1.block1-0.f.se.scale_activation"],
        0.01,
    ),
    "mobilenet": (mobilenet, ["features.1.block.1.scale_activation"], None),
    "convnext": (convnext, ["features.1.0.block.4"], 0.01),
    "swin": (swin, ["features.1.0.mlp.1"], 0.02),
    "timm_resnet": (timm("resnet10t"), ["act1", "layer4.0.act2"], 0.001),
    "timm_efficientnet": (
        timm("efficientnet_b0"),
        ["bn1.act", "blocks.1.0.se.act1", "blocks.1.0.se.gate"],
        1e-4,
    ),
    "timm_regnet": (timm("regnety_002"), ["stem.bn.act", "s1.b1.se.gate"], 0.005),
    "timm_mobilenet": (timm("mobilenetv3_small_050"), ["blocks.0.0.se.gate", "act2"], None),
    "timm_convnext": (timm("convnext_atto"), ["stages.0.blocks.0.mlp.act"], 0.02),
    "timm_vit": (
        timm("vit_tiny_patch16_224", img_size=32, depth=2, patch_size=8),
        ["blocks.1.mlp.act"],
        0.02,
    ),
    "timm_swin": (
        timm("swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1, 1, 1)),
        ["layers.0.blocks.0.mlp.act"],
        0.02,
    ),
}


def with_statistics(model):
    """Return the model in evaluation mode, with estimated batch norm statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(images())
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_classifiers(name):
    """Injection preserves outputs and trains; restore is bitwise exact."""
    build, some, tolerance = MODELS[name]
    torch.manual_seed(0)
    model = with_statistics(build())
    names, expected = [*model.state_dict()], model(images())
    replaced = inject(model, like="replaced" if tolerance else None)
    assert {*some} <= {*replaced} == {*injected_names(model)}
    assert {*names} <= {*model.state_dict()}
    assert tolerance is None or distance(model, images(), expected) < tolerance
    for name, old in replaced.items():
        gate = type(old).__name__ in ("Sigmoid", "Hardsigmoid")
        assert type(model.get_submodule(name)) is (APA if gate else AGLU)
        assert not model.get_submodule(name).training
    model.train()(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    restored = copy.deepcopy(model)
    restore(restored)
    assert [*restored.state_dict()] == names

    model = with_statistics(build())
    expected = model(images())
    inject(model, parameters="per_channel", example=images())
    assert not torch.equal(model(images()), expected)
    restore(model)
    assert torch.equal(model(images()), expected) and [*model.state_dict()] == names


def test_one_module_per_call_of_a_shared_module():
    block = resnet().layer2[0]
    example = torch.randn(1, block.conv1.in_channels, 8, 8)
    replaced = inject(block, parameters="per_channel", example=example)
    assert set(map(id, replaced.values())) == {id(block.relu)}
    widths = [module.num_channels for module in (block.relu1, block.relu2, block.relu3)]
    assert widths == [block.conv1.out_channels, block.conv2.out_channels, block.conv3.out_channels]
    with pytest.raises(ValueError, match="There are none"):  # block.relu is not used any more
        inject(block)
