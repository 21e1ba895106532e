"""APA injected into the architectures of detectron2 and its projects.

Each is built from a config, small, trains a step on a CPU, goes through a checkpoint, and takes the
checkpoint of the same model without APA.
"""

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_model
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
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from apa_det import AGLU, APA, add_apa_config, inject, restore
from apa_det.engine import StrictCheckpointer, build_optimizer

SIZE = 64
CONFIGS = Path(__file__).parents[2] / "configs"
FCOS = "LVISv1-InstanceSegmentation/fcos_R_50_FPN_AGLU_1x.py"


@pytest.fixture
def timm():
    """What detectron2's transformers import."""
    pytest.importorskip("timm")


@pytest.fixture
def panoptic_deeplab(monkeypatch):
    """The project. Only its dataset mapper needs panopticapi, which may be missing."""
    if not importlib.util.find_spec("panopticapi"):
        utils = ModuleType("panopticapi.utils")
        utils.rgb2id = None
        monkeypatch.setitem(sys.modules, "panopticapi", ModuleType("panopticapi"))
        monkeypatch.setitem(sys.modules, "panopticapi.utils", utils)
    from detectron2.projects import panoptic_deeplab

    return panoptic_deeplab


def pictures(count=2):
    """Pictures with two objects each, of classes 0 and 1, and all that a model here asks for."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for _ in range(count):
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes = Boxes(torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 62.0]]))
        instances.gt_classes = torch.tensor([0, 1])
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        masks[0, 6:40, 4:30] = masks[1, 10:62, 20:60] = True
        instances.gt_masks = BitMasks(masks)
        records.append(
            {
                "image": torch.rand(3, SIZE, SIZE, generator=generator) * 255,
                "instances": instances,
                "sem_seg": masks[0].long() + 2 * (masks[1] & ~masks[0]).long(),
                "height": SIZE,
                "width": SIZE,
                "center": masks[0].float(),
                "center_weights": torch.ones(SIZE, SIZE),
                "offset": torch.zeros(2, SIZE, SIZE),
                "offset_weights": torch.ones(SIZE, SIZE),
            }
        )
    return records


def make_cfg(base=None, *overrides, add_config=None):
    cfg = get_cfg()
    if add_config is not None:
        add_config(cfg)
    if base is not None:
        cfg.merge_from_file(model_zoo.get_config_file(base))
    add_apa_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 16),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5, "TEST.DETECTIONS_PER_IMAGE", 5),
            *overrides,
        ]
    )
    return cfg


def injected(cfg, *overrides):
    cfg = cfg.clone()
    cfg.MODEL.APA.INJECT.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "APAInjected"
    cfg.merge_from_list([*overrides])
    return cfg


def outputs(model):
    """All tensors that a model gives for pictures, in one row."""
    found = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            found.append(value.double().flatten())
        elif isinstance(value, Instances):
            collect(value.get_fields())
        elif isinstance(value, Boxes):
            found.append(value.tensor.double().flatten())
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    with torch.no_grad(), EventStorage():
        collect(model.eval()(pictures()))
    return torch.cat(found)


def check(build_plain, build, tmp_path, caplog):
    """Train a step, and go through checkpoints, with APA and without. Returns the trained model."""
    torch.manual_seed(0)
    model, plain = build(), build_plain()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, APA)}
    new = {f"{name}.{p}" for name in layers for p in ("lambda_param", "kappa_param")}
    names, plain_names = [*model.state_dict()], [*plain.state_dict()]
    assert layers and sorted(names) == sorted([*plain_names, *new])

    optimizer = build_optimizer(make_cfg(None, "SOLVER.BASE_LR", 1e-3), model.train())
    with EventStorage():
        losses = model(pictures())
    losses = losses if isinstance(losses, dict) else {"loss": losses}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None}
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    before = {name: m.lambda_param.detach().clone() for name, m in layers.items()}
    optimizer.step()
    assert any(not torch.equal(m.lambda_param, before[name]) for name, m in layers.items())

    StrictCheckpointer(model, str(tmp_path)).save("apa")
    copy = build()
    StrictCheckpointer(copy).load(str(tmp_path / "apa.pth"))
    expected = outputs(model)
    assert torch.equal(outputs(copy), expected)

    StrictCheckpointer(plain, str(tmp_path)).save("plain")
    with caplog.at_level(logging.WARNING):
        StrictCheckpointer(copy, strict=False).load(str(tmp_path / "plain.pth"))
    for name in layers:
        assert f"{name}.{{kappa_param, lambda_param}}" in caplog.text
    state = plain.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in copy.state_dict().items() if k in state)
    restore(copy)
    assert [*copy.state_dict()] == plain_names
    assert torch.equal(outputs(copy), outputs(plain))
    return model


RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
YAML = {
    "retinanet": (RETINANET, {"head.cls_subnet.1", "backbone.top_block.act"}),
    "faster_rcnn": (
        "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        {"roi_heads.box_head.fc_relu2", "proposal_generator.rpn_head.conv.activation"},
    ),
    "faster_rcnn_c4": (
        "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
        {"roi_heads.res5.2.act3", "backbone.stem.act"},
    ),
    "mask_rcnn": (
        MASK_RCNN,
        {"roi_heads.mask_head.mask_fcn4.activation", "roi_heads.mask_head.deconv_relu"},
    ),
    "cascade_rcnn": (
        "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
        {"roi_heads.box_head.2.fc_relu1", "backbone.bottom_up.res5.2.act3"},
    ),
    "panoptic_fpn": (
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
        {"sem_seg_head.p2.0.activation", "roi_heads.mask_head.deconv_relu"},
    ),
}


@pytest.mark.parametrize("name", YAML)
def test_from_yaml(name, tmp_path, caplog):
    config, expected = YAML[name]
    cfg = make_cfg(config)
    model = check(lambda: build_model(cfg), lambda: build_model(injected(cfg)), tmp_path, caplog)
    assert type(model) is META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    assert expected <= {n for n, m in model.named_modules() if isinstance(m, AGLU)}


def test_pointrend(tmp_path, caplog):
    from detectron2.projects.point_rend import add_pointrend_config

    cfg = make_cfg(
        MASK_RCNN,
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
        *("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"),
        *("MODEL.ROI_MASK_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_FC", 2),
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True),
        *("MODEL.POINT_HEAD.NUM_CLASSES", 2, "MODEL.POINT_HEAD.FC_DIM", 16),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2, "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 49),
        add_config=add_pointrend_config,
    )
    model = check(lambda: build_model(cfg), lambda: build_model(injected(cfg)), tmp_path, caplog)
    head = model.roi_heads.mask_head
    assert type(head.coarse_head.act) is AGLU and type(head.point_head.act) is AGLU
    assert type(head.coarse_head.reduce_spatial_dim_conv.activation) is AGLU


def test_implicit_pointrend():
    """Its point head calls F.relu in a static method."""
    from detectron2.projects.point_rend import add_pointrend_config
    from detectron2.projects.point_rend.point_head import ImplicitPointHead

    cfg = make_cfg(None, "MODEL.POINT_HEAD.FC_DIM", 4, add_config=add_pointrend_config)
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = 2
    head = ImplicitPointHead(cfg, ShapeSpec(channels=3))
    parameters = 0.1 * torch.randn(2, head.num_params)
    inputs = torch.randn(2, 3, 5), torch.rand(2, 5, 2), parameters
    expected = head(*inputs)
    assert [*inject(head, like="replaced")] == ["act"]
    torch.testing.assert_close(head(*inputs), expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(head(*inputs), expected)
    head(*inputs).sum().backward()
    assert head.act.lambda_param.grad is not None


def test_panoptic_deeplab(panoptic_deeplab, tmp_path, caplog):
    name = "architectures_panoptic_deeplab"
    MetadataCatalog.get(name).set(
        thing_dataset_id_to_contiguous_id={1: 1, 2: 2}, label_divisor=1000, ignore_label=255
    )
    features = ["res2", "res3", "res5"]
    cfg = make_cfg(
        None,
        *("MODEL.META_ARCHITECTURE", "PanopticDeepLab", "DATASETS.TRAIN", (name,)),
        *("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", features, "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.SEM_SEG_HEAD.NAME", "PanopticDeepLabSemSegHead"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", features, "MODEL.SEM_SEG_HEAD.NORM", "BN"),
        *("MODEL.SEM_SEG_HEAD.PROJECT_FEATURES", features[:2]),
        *("MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [8, 8]),
        *("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 16, "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS", 16),
        *("MODEL.INS_EMBED_HEAD.PROJECT_CHANNELS", [8, 8], "MODEL.INS_EMBED_HEAD.NORM", "BN"),
        *("MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", 16, "MODEL.INS_EMBED_HEAD.CONVS_DIM", 16),
        *("INPUT.CROP.SIZE", [SIZE, SIZE], "INPUT.CROP.TYPE", "absolute"),
        *("INPUT.CROP.ENABLED", True),
        add_config=panoptic_deeplab.add_panoptic_deeplab_config,
    )
    cfg.SOLVER.OPTIMIZER = "SGD"
    model = check(lambda: build_model(cfg), lambda: build_model(injected(cfg)), tmp_path, caplog)
    stem = model.backbone.stem
    assert all(type(act) is AGLU for act in (stem.act1, stem.act2, stem.act3))
    assert type(model.sem_seg_head.decoder["res5"].project_conv.project.activation) is AGLU
    assert type(model.ins_embed_head.center_head[0].activation) is AGLU


def build_lazily(backbone, *, fcos=False):
    """detectron2's own lazy RetinaNet or FCOS, small, on a backbone with an FPN."""
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
def test_from_lazy_config(name, timm, tmp_path, caplog):
    backbone, activations, gates = LAZY[name]

    def build_plain():
        return build_lazily(backbone and backbone(), fcos=name == "fcos")

    def build():
        model = build_plain()
        inject(model, "backbone.*" if name != "fcos" else "*")
        return model

    model = check(build_plain, build, tmp_path, caplog)
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


@pytest.mark.parametrize("parameters", ["per_channel", "tied"])
def test_parameters_from_yaml(parameters):
    cfg = make_cfg(MASK_RCNN)
    model = build_model(injected(cfg, "MODEL.APA.INJECT.PARAMETERS", parameters)).train()
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, APA)}
    if parameters == "tied":
        assert len({id(m) for m in layers.values()}) == 1 and len(layers) > 50
    else:
        block = model.backbone.bottom_up.res3[0]
        widths = [block.conv1.out_channels, block.conv2.out_channels, block.conv3.out_channels]
        assert [act.num_channels for act in (block.act1, block.act2, block.act3)] == widths
        assert layers["roi_heads.box_head.fc_relu1"].num_channels == 16
        assert layers["roi_heads.mask_head.deconv_relu"].num_channels == 8
    with EventStorage():
        sum(model(pictures()).values()).backward()
    assert all(m.kappa_param.grad is not None for m in layers.values())


def test_settings_from_yaml():
    cfg = make_cfg(
        MASK_RCNN,
        *("MODEL.APA.LAMBDA_RANGE", [0.5, 0.5], "MODEL.APA.KAPPA_RANGE", [2.0, 2.0]),
        *("MODEL.APA.LAMBDA_MIN", 0.01),
    )
    names = ["backbone.bottom_up.res[45].*", "roi_heads.box_head.*"]
    model = build_model(injected(cfg, "MODEL.APA.INJECT.NAMES", names))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, APA)}
    assert len(layers) == 3 * (6 + 3) + 2
    for layer in layers.values():
        assert layer.lambda_param.item() == 0.5 and layer.kappa_param.item() == 2.0
        assert layer.lambda_min == 0.01

    model = build_model(injected(cfg, "MODEL.APA.INJECT.LIKE", "replaced"))
    assert model.backbone.bottom_up.stem.act.kappa_param.item() == 300
    with pytest.raises(ValueError, match="types takes relu, .* not softmax"):
        build_model(injected(cfg, "MODEL.APA.INJECT.TYPES", ["softmax"]))
    for name in ("RetinaNut", "APAInjected"):
        with pytest.raises(ValueError, match=f"INJECT.META_ARCHITECTURE is '{name}': name the"):
            build_model(injected(cfg, "MODEL.APA.INJECT.META_ARCHITECTURE", name))


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "panoptic_fpn"])
def test_trained_weights_go_on_working(name):
    """With like="replaced", features and predictions of an R50-FPN stay as they are: to 3%,
    or to 0.02 where all values are near 0, as those of untrained P6 and P7 are."""
    cfg = make_cfg(YAML[name][0])
    torch.manual_seed(0)
    plain, model = build_model(cfg), build_model(injected(cfg, "MODEL.APA.INJECT.LIKE", "replaced"))
    for module_name, module in plain.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        elif isinstance(module, nn.Conv2d) and not module_name.startswith("backbone"):
            nn.init.kaiming_normal_(module.weight)  # trained heads give no values near 0 alone
    with EventStorage():  # the norms learn what their inputs look like, as in training
        plain.train()(pictures(4))
    model.load_state_dict(plain.state_dict(), strict=False)
    predictions = []
    for m in (model.eval(), plain.eval()):
        with torch.no_grad():
            features = m.backbone(m.preprocess_image(pictures()).tensor)
            head = m.head if name == "retinanet" else m.proposal_generator.rpn_head
            used = [features[level] for level in cfg.MODEL.RPN.IN_FEATURES if level in features]
            first, second = head([*features.values()] if name == "retinanet" else used)
            predictions.append([*features.values(), *first, *second])
            if name == "panoptic_fpn":
                predictions[-1].append(m.sem_seg_head(features)[0])
    for ours, expected in zip(*predictions, strict=True):
        difference = ours - expected
        small = expected.abs().max() < 0.2 and difference.abs().max() < 0.02
        assert small or difference.norm() < 0.03 * expected.norm()


def test_fcos_as_configured():
    """The lazy config, built without values."""
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(CONFIGS / FCOS)).model)
    assert type(model).__name__ == "FCOS"
    layers = [name for name, m in model.named_modules() if type(m) is AGLU]
    assert len(layers) == 49 + 1 + 2 * 4 and model.head.cls_score.out_channels == 1203
