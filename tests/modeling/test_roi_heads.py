"""Train and run whole detectors with our heads, also on images without annotations."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det import APA, add_apa_config


def make_cfg(cascade=False, num_classes=3, score="apa"):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_apa_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NAME = "APACascadeROIHeads" if cascade else "APAROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1e-4
    cfg.MODEL.ROI_BOX_HEAD.NAME = "APAFastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = cascade
    cfg.MODEL.ROI_BOX_HEAD.CLASS_SCORE = score
    cfg.MODEL.ROI_BOX_HEAD.GATE = "roi_fc"
    cfg.MODEL.ROI_BOX_HEAD.ACTIVATION = "aglu"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "APAMaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.ACTIVATION = "aglu"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.APA.ACTIVATION = "aglu"
    cfg.MODEL.APA.GATE = "se"
    return cfg


def make_image(num_instances, num_classes=3):
    instances = Instances((64, 96))
    start = torch.rand(num_instances, 2) * 30
    instances.gt_boxes = Boxes(torch.cat([start, start + 20], dim=1))
    instances.gt_classes = torch.arange(num_instances) % num_classes
    masks = torch.zeros(num_instances, 64, 96, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, instances.gt_boxes.tensor.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 64, "width": 96}


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("score", ["", "sigmoid", "gumbel", "apa"])
def test_train_and_infer(cascade, score):
    torch.manual_seed(0)
    model = build_model(make_cfg(cascade, score=score))
    stages = model.roi_heads.num_cascade_stages if cascade else 1
    scores = [m for n, m in model.named_modules() if n.endswith("score") and isinstance(m, APA)]
    assert len(scores) == (stages if score == "apa" else 0)
    with EventStorage():
        losses = model([make_image(2), make_image(0)])
    names = {"loss_cls", "loss_box_reg"}
    if cascade:
        names = {f"{name}_stage{k}" for name in names for k in range(stages)}
    assert set(losses) == names | {"loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        (result,) = model.eval()([make_image(1)])
    assert len(result["instances"]) > 0
    assert result["instances"].pred_masks.shape[1:] == (64, 96)


@pytest.mark.parametrize("cascade", [False, True])
def test_edge_cases(cascade):
    """No annotations, one class, and no proposals."""
    model = build_model(make_cfg(cascade, num_classes=1))
    with EventStorage():
        losses = model([make_image(0, 1), make_image(0, 1)])
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        losses = model([make_image(3, 1)])
        sum(losses.values()).backward()
    model.eval().proposal_generator.post_nms_topk[False] = 0
    with torch.no_grad():
        (result,) = model([make_image(1, 1)])
    assert len(result["instances"]) == 0


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("score", ["gumbel", "apa"])
def test_federated_loss(cascade, score):
    cfg = make_cfg(cascade, score=score)
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = ("roi_heads_counts",)
    counts = [{"id": i, "image_count": 1} for i in range(3)]
    MetadataCatalog.get("roi_heads_counts").set(class_image_count=counts)
    model = build_model(cfg)
    with EventStorage():
        losses = model([make_image(2)])
    sum(losses.values()).backward()
