"""Cascade R-CNN: averaged logits, stage losses, mask heads per stage, and repeated boxes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det.errors import UserError

from .test_roi_heads import make_cfg, make_image

CASCADE = "MODEL.ROI_BOX_CASCADE_HEAD"


def build(*overrides, cascade=True, score=""):
    cfg = make_cfg(cascade, score=score)
    cfg.merge_from_list([*overrides])
    torch.manual_seed(0)
    return build_model(cfg)


def box_losses(model, images):
    """Losses of the RoI heads, and the gradient of the features that they get."""
    torch.manual_seed(1)
    with EventStorage():
        images_, features = model.preprocess_image(images), None
        features = {k: v.detach() for k, v in model.backbone(images_.tensor).items()}
        for feature in features.values():
            feature.requires_grad_()
        targets = [image["instances"] for image in images]
        proposals = []
        for target in targets:
            boxes = torch.cat([target.gt_boxes.tensor + shift for shift in (0.0, 2.0, 9.0)])
            logits = torch.zeros(len(boxes))
            proposals.append(
                Instances(target.image_size, proposal_boxes=Boxes(boxes), objectness_logits=logits)
            )
        _, losses = model.roi_heads(images_, features, proposals, targets)
    sum(loss for name, loss in losses.items() if "mask" not in name).backward()
    return losses, features["p2"].grad


def test_stage_loss_weights():
    images = [make_image(3)]
    plain, plain_gradient = box_losses(build(), images)
    weighted, _ = box_losses(build(f"{CASCADE}.STAGE_LOSS_WEIGHTS", [1.0, 0.5, 0.25]), images)
    assert plain.keys() == weighted.keys()
    for name, loss in plain.items():
        k = int(name[-1]) if "stage" in name else 0
        torch.testing.assert_close(weighted[name], loss * 0.5**k)
    # equal weights: the losses are equal, but the features get the whole gradient
    same, gradient = box_losses(build(f"{CASCADE}.STAGE_LOSS_WEIGHTS", [1.0, 1.0, 1.0]), images)
    torch.testing.assert_close(list(same.values()), list(plain.values()))
    torch.testing.assert_close(gradient, 3 * plain_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("score", ["softmax", "gumbel"])
@torch.no_grad()
def test_average_of_logits(score):
    """Against the stages, run one by one."""
    model = build(f"{CASCADE}.SCORE_AVERAGE", "logits", score=score).eval()
    for k, predictor in enumerate(model.roi_heads.box_predictor):
        predictor.cls_score.weight.data.mul_(300 * (k + 1))
        predictor.test_score_thresh, predictor.test_nms_thresh = -1.0, 1.1
        predictor.test_topk_per_image = 10**6
    heads, image = model.roi_heads, make_image(2)
    images = model.preprocess_image([image])
    features = model.backbone(images.tensor)
    boxes = image["instances"].gt_boxes
    proposals = [Instances((64, 96), proposal_boxes=boxes, objectness_logits=torch.zeros(2))]
    heads.mask_on = False
    instances, _ = heads(images, features, proposals)
    logits = []
    for k in range(3):
        pooled = heads.box_pooler([features[f] for f in heads.box_in_features], [boxes])
        scores, deltas = heads.box_predictor[k](heads.box_head[k](pooled))
        logits.append(scores)
        boxes = heads.box_predictor[k].box2box_transform.apply_deltas(deltas, boxes.tensor)
        boxes = Boxes(boxes)
        boxes.clip((64, 96))
    mean = sum(logits) / 3
    expected = mean.softmax(1)[:, :3] if score == "softmax" else torch.exp(-torch.exp(-mean))
    actual = torch.zeros(2, 3)
    for box, value, k in zip(
        instances[0].pred_boxes.tensor,
        instances[0].scores,
        instances[0].pred_classes,
        strict=True,
    ):
        row = (boxes.tensor - box).abs().sum(dim=1).argmin()
        actual[row, k] = value
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_mask_head_per_stage():
    """Each stage trains its mask head; the predicted masks are the mean of the three."""
    model = build(f"{CASCADE}.MASK_HEAD_PER_STAGE", True)
    images = [make_image(2), make_image(0)]
    with EventStorage():
        losses = model(images)
    assert {k for k in losses if "mask" in k} == {f"loss_mask_stage{k}" for k in range(3)}
    sum(losses.values()).backward()
    heads = model.roi_heads.mask_head
    assert len(heads) == 3
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        model.eval()
        mean = model.inference(images[:1], do_postprocess=False)[0].pred_masks
        parts = []
        for head in heads:
            model.roi_heads.mask_head = head
            parts.append(model.inference(images[:1], do_postprocess=False)[0].pred_masks)
    assert len(mean) > 0
    torch.testing.assert_close(mean, sum(parts) / 3)


@pytest.mark.parametrize("cascade", [False, True])
def test_repeated_boxes(cascade):
    """Without jitter, only the first of two equal boxes is matched; with it, both are."""
    image = make_image(2)
    image["instances"].gt_boxes = Boxes([[10.0, 10, 50, 50]] * 2)
    box = torch.tensor([[10.0, 10, 50, 50]])
    for amount, classes in ((0.0, {0}), (0.01, {0, 1})):
        heads = build("MODEL.ROI_HEADS.JITTER_REPEATED_BOXES", amount, cascade=cascade).roi_heads
        seen = set()
        for _ in range(20):
            proposals = [Instances((64, 96), proposal_boxes=Boxes(box))]
            proposals[0].objectness_logits = torch.zeros(1)
            targets = [image["instances"]]
            with EventStorage():
                (sampled,) = heads.label_and_sample_proposals(proposals, targets)
                if cascade:
                    proposals = [Instances((64, 96), proposal_boxes=Boxes(box))]
                    (sampled,) = heads._match_and_label_boxes(proposals, 1, targets)
            assert (sampled.gt_boxes.tensor == box).all() and not sampled.has("gt_given_boxes")
            assert (sampled.proposal_boxes.tensor == box).all()
            seen |= set(sampled.gt_classes.tolist())
        assert seen == classes


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([f"{CASCADE}.SCORE_AVERAGE", "scores"], "must be probabilities or logits; got 'scores'"),
        ([f"{CASCADE}.STAGE_LOSS_WEIGHTS", [1.0]], "one entry for each of the 3 stages, got 1"),
        (["MODEL.ROI_HEADS.LOW_QUALITY_IOU", 0.5], "has no low-quality matches"),
        (
            [
                *("MODEL.ROI_BOX_HEAD.CALIBRATION", "TauNorm"),
                *("MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 1.0),
                *(f"{CASCADE}.SCORE_AVERAGE", "logits"),
            ],
            "CALIBRATION TauNorm depends on the classifier of each stage",
        ),
    ],
)
def test_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        build(*overrides)
