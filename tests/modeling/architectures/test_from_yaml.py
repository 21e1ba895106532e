"""Inject APA into detectron2's models and projects that are built from a yaml config."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from torch import nn

import apa_det
from apa_det import AGLU, APA, inject
from apa_det.errors import UserError

SIZE = 64


@pytest.fixture
def panoptic_deeplab(monkeypatch):
    """The project; panopticapi is replaced if missing, since only the dataset mapper needs it."""
    if not importlib.util.find_spec("panopticapi"):
        utils = ModuleType("panopticapi.utils")
        utils.rgb2id = None
        monkeypatch.setitem(sys.modules, "panopticapi", ModuleType("panopticapi"))
        monkeypatch.setitem(sys.modules, "panopticapi.utils", utils)
    from detectron2.projects import panoptic_deeplab

    return panoptic_deeplab


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
def test_from_yaml(name, make_cfg, inject_cfg, check_injection):
    config, expected = YAML[name]
    cfg = make_cfg(config)
    model = check_injection(lambda: build_model(cfg), lambda: build_model(inject_cfg(cfg)))
    assert type(model) is META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    assert expected <= {n for n, m in model.named_modules() if isinstance(m, AGLU)}


@pytest.mark.parametrize("parameters", ["shared", "per_channel"])
def test_build_model_keeps_the_name(parameters, make_cfg, inject_cfg):
    """The model of APAInjected, with the meta-architecture in the config."""
    cfg = make_cfg("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg.MODEL.APA.INJECT.PARAMETERS = parameters
    torch.manual_seed(0)
    expected = build_model(inject_cfg(cfg)).state_dict()
    assert not any(isinstance(m, APA) for m in apa_det.build_model(cfg).modules())
    cfg.MODEL.APA.INJECT.ENABLED = True
    both = inject_cfg(cfg)
    cfg.freeze()
    torch.manual_seed(0)
    state = apa_det.build_model(cfg).state_dict()
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    # APAInjected injects once, not twice
    assert apa_det.build_model(both).state_dict().keys() == expected.keys()


def test_pointrend(make_cfg, inject_cfg, check_injection):
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
    model = check_injection(lambda: build_model(cfg), lambda: build_model(inject_cfg(cfg)))
    head = model.roi_heads.mask_head
    assert type(head.coarse_head.act) is AGLU and type(head.point_head.act) is AGLU
    assert type(head.coarse_head.reduce_spatial_dim_conv.activation) is AGLU


def test_implicit_pointrend(make_cfg):
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


def test_panoptic_deeplab(panoptic_deeplab, make_cfg, inject_cfg, check_injection):
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
    model = check_injection(lambda: build_model(cfg), lambda: build_model(inject_cfg(cfg)))
    stem = model.backbone.stem
    assert all(type(act) is AGLU for act in (stem.act1, stem.act2, stem.act3))
    assert type(model.sem_seg_head.decoder["res5"].project_conv.project.activation) is AGLU
    assert type(model.ins_embed_head.center_head[0].activation) is AGLU


@pytest.mark.parametrize("parameters", ["per_channel", "tied"])
def test_parameters(parameters, make_cfg, inject_cfg, make_images):
    cfg = make_cfg(MASK_RCNN)
    model = build_model(inject_cfg(cfg, "MODEL.APA.INJECT.PARAMETERS", parameters)).train()
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
        sum(model(make_images()).values()).backward()
    assert all(m.kappa_param.grad is not None for m in layers.values())


def test_settings(make_cfg, inject_cfg):
    cfg = make_cfg(
        MASK_RCNN,
        *("MODEL.APA.LAMBDA_RANGE", [0.5, 0.5], "MODEL.APA.KAPPA_RANGE", [2.0, 2.0]),
        *("MODEL.APA.LAMBDA_MIN", 0.01),
    )
    names = ["backbone.bottom_up.res[45].*", "roi_heads.box_head.*"]
    model = build_model(inject_cfg(cfg, "MODEL.APA.INJECT.NAMES", names))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, APA)}
    assert len(layers) == 3 * (6 + 3) + 2
    for layer in layers.values():
        assert layer.lambda_param.item() == 0.5 and layer.kappa_param.item() == 2.0
        assert layer.lambda_min == 0.01

    model = build_model(inject_cfg(cfg, "MODEL.APA.INJECT.LIKE", "replaced"))
    assert model.backbone.bottom_up.stem.act.kappa_param.item() == 300
    with pytest.raises(
        ValueError, match="types must be module classes or among relu, .*; got softmax"
    ):
        build_model(inject_cfg(cfg, "MODEL.APA.INJECT.TYPES", ["softmax"]))
    for name in ("RetinaNut", "APAInjected"):
        with pytest.raises(UserError, match=f"INJECT.META_ARCHITECTURE must be .* got '{name}'"):
            build_model(inject_cfg(cfg, "MODEL.APA.INJECT.META_ARCHITECTURE", name))


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "panoptic_fpn"])
def test_trained_weights_keep_working(name, make_cfg, inject_cfg, make_images):
    """With like="replaced", features and predictions of an R50-FPN change by less than 3%.

    Where all values are near 0, as in untrained P6 and P7, they change by less than 0.02.
    """
    cfg = make_cfg(YAML[name][0])
    torch.manual_seed(0)
    plain, model = (
        build_model(cfg),
        build_model(inject_cfg(cfg, "MODEL.APA.INJECT.LIKE", "replaced")),
    )
    for module_name, module in plain.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        elif isinstance(module, nn.Conv2d) and not module_name.startswith("backbone"):
            nn.init.kaiming_normal_(module.weight)  # trained heads predict values away from 0
    with EventStorage():  # estimates the statistics of the norms
        plain.train()(make_images(4))
    model.load_state_dict(plain.state_dict(), strict=False)
    predictions = []
    for m in (model.eval(), plain.eval()):
        with torch.no_grad():
            features = m.backbone(m.preprocess_image(make_images()).tensor)
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
