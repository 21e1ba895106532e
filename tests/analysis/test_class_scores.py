"""Sampled class logits against those of the model's training pass."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det import add_apa_config
from apa_det.analysis import CLASS_SCORE, InputSampler
from apa_det.analysis.class_scores import (
    has_roi_class_scores,
    sample_dense_class_scores,
    sample_roi_class_scores,
)

GROUPS = np.array([0, 1, 1, -1])  # of 4 classes


def make_model(*opts):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_apa_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NAME = "APAROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 4, 16
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "APAFastRCNNConvFCHead", 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 16, 7
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 8
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.merge_from_list(opts)
    torch.manual_seed(0)
    return build_model(cfg).eval()


def make_target():
    target = Instances((64, 64))
    target.gt_boxes = Boxes(torch.tensor([[4.0, 8, 30, 40], [30, 20, 62, 60], [0, 0, 60, 20]]))
    target.gt_classes = torch.tensor([0, 1, 3])
    return target


def sampled(model, targets):
    sampler, seen = InputSampler(model), []
    handle = model.roi_heads.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
    with torch.no_grad():
        model([{"image": torch.randint(256, (3, 64, 64)).float()} for _ in targets])
        handle.remove()
        torch.manual_seed(1)
        sample_roi_class_scores(model.roi_heads, seen[0], targets, GROUPS, sampler)
    return sampler.samples, seen[0]


@pytest.mark.parametrize(
    "score,eta",
    [
        ("apa", ([1.0], [1.0])),
        ("gumbel", ([0.0], [1.0])),
        ("sigmoid", ([1.0], [1.0])),
        ("softmax", None),
    ],
)
def test_standard_heads(score, eta):
    model = make_model("MODEL.ROI_BOX_HEAD.CLASS_SCORE", score)
    heads = model.roi_heads
    assert has_roi_class_scores(model)
    samples, (_, features, proposals) = sampled(model, [make_target()])
    with torch.no_grad(), EventStorage():
        torch.manual_seed(1)
        labeled = heads.label_and_sample_proposals(proposals, [make_target()])
        pooled = heads.box_pooler(
            [features[f] for f in heads.box_in_features], [labeled[0].proposal_boxes]
        )
        logits, _ = heads.box_predictor(heads.box_head(pooled))
    classes = labeled[0].gt_classes
    assert {0, 1, 3, 4} <= set(classes.tolist())  # 4: background

    by_key = {(s.group, s.gt_class): s for s in samples}
    assert set(by_key) == {(0, True), (0, False), (1, True), (1, False)}
    for (group, gt_class), sample in by_key.items():
        expected = [
            logits[i, k].item()
            for i in range(len(classes))
            for k in range(4)
            if GROUPS[k] == group and (classes[i] == k) == gt_class
        ]
        np.testing.assert_allclose(np.sort(sample.values), np.sort(expected), rtol=1e-5)
        assert (sample.kind, sample.layer_type) == (CLASS_SCORE, score)
        assert (sample.eta and tuple(v.tolist() for v in sample.eta)) == eta

    assert not heads.training and heads.mask_on and "losses" not in vars(heads.box_predictor)


def test_parameters_per_class():
    model = make_model(
        *("MODEL.ROI_BOX_HEAD.CLASS_SCORE", "apa", "MODEL.ROI_BOX_HEAD.SCORE_PER_CLASS", True)
    )
    samples, _ = sampled(model, [make_target()])
    assert len(samples[0].eta[0]) == 4
    for sample in samples:
        assert set(GROUPS[sample.channels]) == {sample.group}


def test_cascade():
    model = make_model("MODEL.ROI_HEADS.NAME", "APACascadeROIHeads", "MODEL.MASK_ON", False)
    names = {s.name for s in sampled(model, [make_target(), make_target()])[0]}
    assert names == {f"roi_heads.box_predictor.{i}" for i in range(3)}


def test_images_without_objects():
    empty = Instances((64, 64), gt_boxes=Boxes(torch.empty(0, 4)), gt_classes=torch.empty(0).long())
    samples, _ = sampled(make_model(), [empty])
    assert [s.seen > 0 for s in samples] == [not s.gt_class for s in samples]


def test_dense():
    """RetinaNet: all foreground anchors and 512 of the background."""
    model = make_model(
        *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 4),
        *("MODEL.BACKBONE.NAME", "build_apa_retinanet_resnet_fpn_backbone"),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.NUM_CONVS", 1),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.RETINANET.PRIOR_PROB", 0.3),
    )
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.1)
    batch = [{"image": torch.randint(256, (3, 64, 64)).float(), "instances": make_target()}]
    sampler = InputSampler(model)
    with torch.no_grad():
        sample_dense_class_scores(model, batch, GROUPS, sampler)
        features = model.backbone(model.preprocess_image(batch).tensor)
        features = [features[f] for f in model.head_in_features]
        (labels,), _ = model.label_anchors(model.anchor_generator(features), [make_target()])
        logits = torch.cat(
            [
                x.view(1, -1, 4, *x.shape[2:]).permute(0, 3, 4, 1, 2).reshape(-1, 4)
                for x in model.head(features)[0]
            ]
        )
    by_key = {(s.group, s.gt_class): s for s in sampler.samples}
    for group, classes in ((0, [0]), (1, [1, 2])):
        expected = torch.cat([logits[labels == k, k] for k in classes])
        assert len(expected) > 0
        sample = by_key[group, True]
        np.testing.assert_allclose(np.sort(sample.values), expected.sort().values, rtol=1e-4)
        foreground = ((labels >= 0) & (labels < 4)).sum().item()
        background = min(512, (labels == 4).sum().item())
        others = len(classes) * (foreground + background) - len(expected)
        assert by_key[group, False].seen == others
        assert sample.layer_type == "sigmoid" and sample.eta[0] == 1
    assert not model.training and "losses" not in vars(model)
