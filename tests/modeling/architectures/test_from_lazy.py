"""Inject APA into detectron2's models that are built from a lazy config."""

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import (
    FPN,
    MViT,
    RegNet,
    SimpleFeaturePyramid,
    SwinTransformer,
    ViT,
)
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem

from apa_det import AGLU, APA, inject

SIZE = 64
CONFIGS = Path(__file__).parents[3] / "configs"
FCOS = "LVISv1-InstanceSegmentation/fcos_R_50_FPN_AGLU_1x.py"


@pytest.fixture
def timm():
    """detectron2's transformers import it."""
    pytest.importorskip("timm")


def build_lazily(backbone, *, fcos=False):
    """Build detectron2's lazy RetinaNet or FCOS in small, on a backbone with an FPN."""
    name = "fcos" if fcos else "retinanet"
    model = model_zoo.get_config(f"COCO-Detection/{name}_R_50_FPN_1x.py").model
    if backbone is None:
        bottom_up = model.backbone.bottom_up
        bottom_up.stem.out_channels, bottom_up.stem.norm, bottom_up.stages.norm = 64, "BN", "BN"
        bottom_up.stages.depth, bottom_up.freeze_at = 18, 0
        del bottom_up.stages.stride_in_1x1
        model.backbone.top_block.in_channels = 16 if fcos else 512
        model.backbone.top_block.out_channels = model.backbone.out_channels = 16
    else:
        model.backbone = backbone
        model.head_in_features = [f"p{level}" for level in range(2, 7)]
        if not fcos:
            model.anchor_generator.sizes = [[size] for size in (8, 16, 32, 64, 128)]
            model.anchor_generator.aspect_ratios = [1.0]
            model.anchor_generator.strides = [4, 8, 16, 32, 64]
            model.head.num_anchors = 1
    model.head.input_shape = [ShapeSpec(channels=16)] * 5
    model.head.conv_dims, model.head.norm = [16] * 2, ""
    model.num_classes = 2
    model.test_score_thresh = 0.0
    return instantiate(model)


def fpn(bottom_up, *features):
    return L(FPN)(
        bottom_up=bottom_up,
        in_features=[*features],
        out_channels=16,
        top_block=L(LastLevelMaxPool)(),
    )


def vit():
    net = L(ViT)(
        img_size=SIZE,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        window_size=2,
        window_block_indexes=[0],
        residual_block_indexes=[1],
        use_rel_pos=True,
        pretrain_img_size=SIZE,
    )
    return L(SimpleFeaturePyramid)(
        net=net,
        in_feature="last_feat",
        out_channels=16,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=L(LastLevelMaxPool)(),
        square_pad=SIZE,
    )


def swin():
    net = L(SwinTransformer)(
        embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, drop_path_rate=0.0
    )
    return fpn(net, "p0", "p1", "p2", "p3")


def mvit():
    net = L(MViT)(
        img_size=SIZE, embed_dim=8, depth=4, last_block_indexes=(0, 1, 2, 3), pretrain_img_size=SIZE
    )
    return fpn(net, "scale2", "scale3", "scale4", "scale5")


def regnet():
    net = L(RegNet)(
        stem_class=SimpleStem,
        stem_width=8,
        block_class=ResBottleneckBlock,
        depth=5,
        w_a=14,
        w_0=8,
        w_m=2.0,
        group_width=4,
        se_ratio=0.25,
        norm="BN",
        out_features=["s1", "s2", "s3", "s4"],
    )
    return fpn(net, "s1", "s2", "s3", "s4")


LAZY = {
    "fcos": (None, {"head.cls_subnet.1", "backbone.top_block.act"}, set()),
    "vit": (
        vit,
        {"backbone.net.blocks.0.mlp.act", "backbone.net.blocks.1.residual.act1"},
        set(),
    ),
    "swin": (swin, {"backbone.bottom_up.layers.3.blocks.0.mlp.act"}, set()),
    "mvit": (mvit, {"backbone.bottom_up.blocks.3.mlp.act"}, set()),
    "regnet": (
        regnet,
        {"backbone.bottom_up.stem.af", "backbone.bottom_up.s1.b1.f.b_af"},
        {"backbone.bottom_up.s1.b1.f.se.f_ex.3"},
    ),
}


@pytest.mark.parametrize("name", LAZY)
def test_from_lazy_config(name, timm, check_injection):
    backbone, activations, gates = LAZY[name]

    def build_plain():
        return build_lazily(backbone and backbone(), fcos=name == "fcos")

    def build():
        model = build_plain()
        inject(model, "backbone.*" if name != "fcos" else "*")
        return model

    model = check_injection(build_plain, build)
    assert activations <= {n for n, m in model.named_modules() if type(m) is AGLU}
    assert gates <= {n for n, m in model.named_modules() if type(m) is APA}


@pytest.mark.parametrize("name", ["vit", "swin", "mvit"])
def test_transformers_with_channels_last(name, timm):
    backbone = instantiate({"vit": vit, "swin": swin, "mvit": mvit}[name]()).eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    expected = backbone(x)
    inject(backbone, like="replaced", parameters="per_channel", example=x)
    layers = {n: m for n, m in backbone.named_modules() if isinstance(m, AGLU)}
    widths = {n: m.num_channels for n, m in layers.items() if n.endswith("mlp.act")}
    assert widths and all(
        backbone.get_submodule(n.replace("act", "fc1")).out_features == width
        for n, width in widths.items()
    )
    for level, feature in backbone(x).items():
        assert (feature - expected[level]).norm() <= 0.05 * expected[level].norm()


def test_fcos_as_configured():
    """The lazy config, built on the meta device."""
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(CONFIGS / FCOS)).model)
    assert type(model).__name__ == "FCOS"
    layers = [name for name, m in model.named_modules() if type(m) is AGLU]
    assert len(layers) == 49 + 1 + 2 * 4 and model.head.cls_score.out_channels == 1203
