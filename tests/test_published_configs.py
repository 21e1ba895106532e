"""The published recipes: parameter counts, schedules, and frozen layers."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from torch import nn

from apa_det import add_apa_config
from apa_det.engine import build_optimizer
from apa_det.layers import EvalBatchNorm2d

CONFIGS = Path(__file__).parents[1] / "configs"
LVIS, COCO, V3DET = "LVISv1-InstanceSegmentation", "COCO-InstanceSegmentation", "V3Det-Detection"
COCO_BOXES = "COCO-Detection"
LVIS_R50 = f"{LVIS}/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml"
V3DET_R50 = f"{V3DET}/faster_rcnn_SE_R_50_FPN_AGLU_2x.yaml"
K = {LVIS: 1203, COCO: 80, COCO_BOXES: 80, V3DET: 13204}


def load(name, device="cpu"):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.MODEL.DEVICE = device
    return cfg


def linear(inputs, outputs):
    return inputs * outputs + outputs


def conv(inputs, outputs, size):
    return inputs * outputs * size**2 + outputs


def resnet(blocks, *, groups=1, width=64, published=True):
    """Count parameters; the frozen norms of the stem and stage 1 are not parameters."""
    total = 3 * 64 * 7**2 + (2 if published else 0)
    inputs = 64
    for stage, count in enumerate(blocks):
        middle, outputs = groups * width * 2**stage, 256 * 2**stage
        for block in range(count):
            total += inputs * middle + middle // groups * middle * 9 + middle * outputs
            norms = 2 * (middle + middle + outputs)
            if block == 0:
                total += inputs * outputs
                norms += 2 * outputs
            total += norms if stage else 0
            if published:
                total += 3 * 2 + 2 * outputs + 2 * outputs * (outputs // 16) + 2
            inputs = outputs
    return total


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
FPN = sum(conv(c, 256, 1) + conv(256, 256, 3) for c in (256, 512, 1024, 2048))
RPN = conv(256, 256, 3) + conv(256, 3, 1) + conv(256, 12, 1)
BOX_HEAD = linear(256 * 7**2, 1024) + linear(1024, 1024)
MASK_CONVS = 4 * conv(256, 256, 3)


def carafe_mask_head(k):
    return MASK_CONVS + conv(256, 64, 1) + conv(64, 100, 3) + conv(256, k, 1) + 1


def plain_mask_head(k):
    return MASK_CONVS + conv(256, 256, 2) + conv(256, k, 1)


def box_outputs(k, scores, agnostic=False):
    return linear(1024, scores) + linear(1024, 4 if agnostic else 4 * k)


def wrapped_cauchy(k):
    return box_outputs(k, k + 1, agnostic=True) + k + 1


def plain_se(blocks=R50):
    """Count the parameters of the gates without LayerNorm."""
    return sum(n * 2 * c * (c // 16) for n, c in zip(blocks, (256, 512, 1024, 2048), strict=True))


COMMON = FPN + RPN
SIZES = {
    LVIS_R50: resnet(R50) + BOX_HEAD + box_outputs(1203, 1203) + carafe_mask_head(1203),
    f"{LVIS}/mask_rcnn_SE_R_101_FPN_AGLU_GOL_2x.yaml": resnet(R101)
    + BOX_HEAD
    + box_outputs(1203, 1203)
    + plain_mask_head(1203),
    f"{LVIS}/mask_rcnn_SE_X_101_64x4d_FPN_AGLU_GOL_2x.yaml": resnet(R101, groups=64, width=4)
    + BOX_HEAD
    + box_outputs(1203, 1203)
    + plain_mask_head(1203),
    f"{LVIS}/mask_rcnn_R_50_FPN_softmax_2x.yaml": resnet(R50, published=False)
    + BOX_HEAD
    + box_outputs(1203, 1204)
    + plain_mask_head(1203),
    f"{LVIS}/mask_rcnn_R_50_FPN_normed_ECM_2x.yaml": resnet(R50, published=False)
    + BOX_HEAD
    + box_outputs(1203, 1204)
    + plain_mask_head(1203),
    f"{LVIS}/mask_rcnn_R_50_FPN_normed_FRACAL_2x.yaml": resnet(R50, published=False)
    + BOX_HEAD
    + box_outputs(1203, 1204)
    + carafe_mask_head(1203),
    f"{LVIS}/mask_rcnn_R_101_FPN_normed_FRACAL_2x.yaml": resnet(R101, published=False)
    + BOX_HEAD
    + box_outputs(1203, 1204)
    + carafe_mask_head(1203)
    - 1,  # a fixed temperature
    f"{COCO}/mask_rcnn_SE_R_50_FPN_AGLU_2x.yaml": resnet(R50)
    + BOX_HEAD
    + box_outputs(80, 81)
    + plain_mask_head(80),
    V3DET_R50: resnet(R50) + BOX_HEAD + wrapped_cauchy(13204),
    f"{V3DET}/cascade_rcnn_SE_R_50_FPN_AGLU_2x.yaml": resnet(R50)
    + 3 * (BOX_HEAD + wrapped_cauchy(13204)),
    f"{V3DET}/faster_rcnn_R_50_FPN_wrapped_cauchy_2x.yaml": resnet(R50, published=False)
    + BOX_HEAD
    + wrapped_cauchy(13204),
    f"{V3DET}/cascade_rcnn_SE_R_50_FPN_wrapped_cauchy_2x.yaml": resnet(R50, published=False)
    + plain_se()
    + 3 * (BOX_HEAD + wrapped_cauchy(13204)),
    f"{V3DET}/mask_rcnn_R_50_FPN_normed_sigmoid_2x.yaml": resnet(R50, published=False)
    + BOX_HEAD
    + box_outputs(13204, 13204, agnostic=True)
    + plain_mask_head(13204),
}


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(name):
    with torch.device("meta"):
        model = build_model(load(name, "meta"))
    assert sum(p.numel() for p in model.parameters()) == SIZES[name] + COMMON


def frozen_stage_1():
    stage = "backbone.bottom_up.res2"
    for block in range(3):
        yield from (f"{stage}.{block}.conv{i}.weight" for i in (1, 2, 3))
        yield from (f"{stage}.{block}.gate.{p}.weight" for p in ("norm", "fc1", "fc2"))
        yield f"{stage}.{block}.gate.norm.bias"
        for act in ("act1", "act2", "act3", "gate.activation"):
            yield from (f"{stage}.{block}.{act}.{p}" for p in ("lambda_param", "kappa_param"))
    yield f"{stage}.0.shortcut.weight"


@pytest.mark.parametrize("name", [LVIS_R50, V3DET_R50])
def test_frozen_parameters(name):
    model = build_model(load(name))
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.bottom_up.stem.conv1.weight", *frozen_stage_1()}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 42 and all(type(m) is EvalBatchNorm2d for m in norms)


@pytest.mark.parametrize("name", [LVIS_R50, V3DET_R50])
def test_optimizer(name):
    """All trained parameters, including norms, biases, λ and κ, have the same weight decay."""
    cfg = load(name)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD if "LVIS" in name else torch.optim.AdamW)
    lr, decay = (0.02, 1e-4) if "LVIS" in name else (1e-4, 0.1)
    for group in optimizer.param_groups:
        assert group["lr"] == lr and group["weight_decay"] == decay
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == sum(p.requires_grad for p in model.parameters())


LVIS_EPOCH, COCO_EPOCH = 7674, 7330
SCHEDULES = {
    LVIS: (0.02, 500, 0.001, 16 * LVIS_EPOCH, 22 * LVIS_EPOCH, 24 * LVIS_EPOCH),
    COCO: (0.02, 500, 0.001, 16 * COCO_EPOCH, 22 * COCO_EPOCH, 24 * COCO_EPOCH),
    COCO_BOXES: (0.01, 500, 0.001, 16 * COCO_EPOCH, 22 * COCO_EPOCH, 24 * COCO_EPOCH),
    V3DET: (1e-4, 5000, 1 / 2048, 91_680, 126_060, 137_520),
}


@pytest.mark.parametrize(
    "name",
    [str(path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob("*_2x.yaml"))],
)
def test_schedule(name):
    cfg = load(name)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == K[Path(name).parent.name]
    base, warmup, factor, first, second, end = SCHEDULES[Path(name).parent.name]
    if name.endswith("ECM_2x.yaml"):
        warmup, factor, first = 10_000, 1e-4, 20 * LVIS_EPOCH
        clip = cfg.SOLVER.CLIP_GRADIENTS
        assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 5.0)
    if cfg.DATASETS.TRAIN == ("v3det_train_sam",):  # 24 images per batch instead of 32
        base = base * 24 / 32
        first, second, end = (steps * 32 // 24 for steps in (first, second, end))
    assert end == cfg.SOLVER.MAX_ITER
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)

    def lr(iteration):
        scheduler.last_epoch = iteration
        return scheduler.get_lr()[0]

    def warm(iteration):
        return base * (factor + (1 - factor) * iteration / warmup)

    expected = {
        0: base * factor,
        499: warm(499),
        500: warm(500) if warmup > 500 else base,
        warmup - 1: warm(warmup - 1),
        warmup: base,
        first - 1: base,
        first: base / 10,
        second - 1: base / 10,
        second: base / 100,
        end - 1: base / 100,
    }
    assert {i: lr(i) for i in expected} == pytest.approx(expected, rel=1e-6)


def test_lvis_settings():
    cfg = load(LVIS_R50)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert cfg.INPUT.MAX_SIZE_TRAIN == cfg.INPUT.MAX_SIZE_TEST == 1333
    assert cfg.INPUT.FORMAT == "RGB" and cfg.SOLVER.IMS_PER_BATCH == 16
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001 and cfg.DATALOADER.REPEAT_ROUNDING == "up"
    assert (cfg.DATALOADER.MIN_IMAGE_SIDE, cfg.DATALOADER.MIN_BOX_SIDE) == (32, 1.0)
    model = build_model(cfg)
    matchers = model.proposal_generator.anchor_matcher, model.roi_heads.proposal_matcher
    assert [matcher.min_quality for matcher in matchers] == [0.3, 0.5]
    predictor = model.roi_heads.box_predictor
    # torch's defaults: standard deviations 1 / √(3 · inputs)
    layers = model.roi_heads.box_head.fc1, model.roi_heads.box_head.fc2, predictor.bbox_pred
    stds = [layer.weight.std().item() for layer in layers]
    assert stds == pytest.approx([0.00516, 0.018, 0.018], rel=0.01)
    assert all(layer.bias.any() for layer in layers)
    assert predictor.test_score_thresh == 1e-4 and predictor.test_nms_thresh == 0.3
    assert predictor.test_topk_per_image == 300
    assert predictor.class_score == "gumbel" and predictor.logit_clamp == 10
    assert (predictor.cls_score.weight == 0.001).all() and (predictor.cls_score.bias == -2).all()


@pytest.mark.parametrize("name", [str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*_2x.yaml")])
def test_float32(name):
    """As in the authors' code, which ignores the mixed precision of its configs."""
    assert not load(name).SOLVER.AMP.ENABLED


@pytest.mark.parametrize("depth", [50, 101])
def test_lvis_mask_heads(depth):
    """SE-R50: CARAFE, and a learned temperature from 4.5². SE-R101: a deconvolution, and 20."""
    head = load(f"{LVIS}/mask_rcnn_SE_R_{depth}_FPN_AGLU_GOL_2x.yaml").MODEL.ROI_MASK_HEAD
    settings = head.UPSAMPLE, head.PREDICTOR_TEMPERATURE, head.PREDICTOR_LEARN_TEMPERATURE
    assert settings == (("carafe", 4.5**2, True) if depth == 50 else ("deconv", 20, False))


def test_coco_starts_from_relu():
    cfg = load(f"{COCO}/mask_rcnn_SE_R_50_FPN_AGLU_2x.yaml")
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    assert (cfg.MODEL.APA.ACTIVATION, cfg.MODEL.APA.GATE) == ("aglu", "se")


def test_v3det_settings():
    cfg = load(V3DET_R50)
    assert (cfg.DATALOADER.MIN_IMAGE_SIDE, cfg.DATALOADER.REPEAT_ROUNDING) == (4, "up")
    assert cfg.MODEL.ROI_HEADS.JITTER_REPEATED_BOXES == 0.01
    assert (cfg.MODEL.RPN.LOW_QUALITY_IOU, cfg.MODEL.ROI_HEADS.LOW_QUALITY_IOU) == (0.3, None)
    assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN) == (4000, 2000)
    assert cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.6 and cfg.SOLVER.IMS_PER_BATCH == 32
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 35
    cascade = load(f"{V3DET}/cascade_rcnn_SE_R_50_FPN_AGLU_2x.yaml")
    settings = cascade.MODEL.ROI_BOX_CASCADE_HEAD
    assert settings.SCORE_AVERAGE == "logits" and settings.STAGE_LOSS_WEIGHTS == [1, 0.5, 0.25]
    assert cascade.MODEL.RPN.BOUNDARY_THRESH == 0
    inverse = [
        [1 / w for w in weights] for weights in cascade.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    ]
    expected = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    for ours, published in zip(inverse, expected, strict=True):
        assert ours == pytest.approx(published, rel=1e-8)
