"""Compare the mask head with detectron2's; check its threshold."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead, build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det import AGLU, add_apa_config
from apa_det.errors import UserError
from apa_det.layers import CARAFE, NormedConv2d

SHAPE = ShapeSpec(channels=8, height=14, width=14)


def make_cfg(**head):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_MASK_HEAD.NAME = "APAMaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.update(head)
    return cfg


def make_instances():
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(torch.tensor([[3.0, 4, 50, 40], [0, 0, 79, 59]]))
    instances.pred_classes = torch.tensor([2, 0])
    instances.scores = torch.tensor([0.9, 0.8])
    return [instances]


def test_switched_off_is_detectron2():
    cfg = make_cfg()
    ours, theirs = build_mask_head(cfg, SHAPE).eval(), MaskRCNNConvUpsampleHead(cfg, SHAPE).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 14, 14)
    masks = [head(x, make_instances())[0].pred_masks for head in (ours, theirs)]
    assert torch.equal(*masks)


def test_aglu():
    head = build_mask_head(make_cfg(ACTIVATION="aglu"), SHAPE)
    assert sum(isinstance(m, AGLU) for m in head.modules()) == 3
    assert head.layers(torch.randn(2, 8, 14, 14)).shape == (2, 3, 28, 28)


PUBLISHED = dict(
    UPSAMPLE="carafe",
    PREDICTOR="normed",
    PREDICTOR_TEMPERATURE=20.25,
    PREDICTOR_LEARN_TEMPERATURE=True,
)


def test_published():
    """CARAFE feeds the normed predictor, without an activation in between."""
    torch.manual_seed(0)
    head = build_mask_head(make_cfg(**PUBLISHED), SHAPE)
    assert [name for name, _ in head.named_children()] == [
        "mask_fcn1",
        "mask_fcn2",
        "upsample",
        "predictor",
    ]
    assert type(head.upsample) is CARAFE and type(head.predictor) is NormedConv2d
    assert head.predictor.temperature.item() == 4.5
    assert [n for n in head.state_dict() if n.startswith(("upsample", "predictor"))] == [
        "upsample.channel_compressor.weight",
        "upsample.channel_compressor.bias",
        "upsample.content_encoder.weight",
        "upsample.content_encoder.bias",
        "predictor.weight",
        "predictor.bias",
        "predictor.temperature",
    ]
    x = torch.randn(2, 8, 14, 14)
    features = head.upsample(head.mask_fcn2(head.mask_fcn1(x)))
    assert features.shape == (2, 8, 28, 28)
    weight = head.predictor.weight / head.predictor.weight.norm(dim=1, keepdim=True)
    cosine = torch.nn.functional.conv2d(features / features.norm(dim=1, keepdim=True), weight)
    assert cosine.abs().max() > 0.1
    torch.testing.assert_close(head.layers(x), 20.25 * cosine, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("upsample", ["deconv", "carafe"])
@pytest.mark.parametrize("predictor", ["conv", "normed"])
@pytest.mark.parametrize("num_rois", [0, 3])
def test_trains(upsample, predictor, num_rois):
    head = build_mask_head(make_cfg(UPSAMPLE=upsample, PREDICTOR=predictor), SHAPE).train()
    instances = Instances((60, 80))
    boxes = torch.tensor([[3.0, 4, 50, 40]]).repeat(num_rois, 1)
    instances.proposal_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([2, 0, 1])[:num_rois]
    instances.gt_masks = BitMasks(torch.rand(num_rois, 60, 80) > 0.5)
    with EventStorage():
        loss = head(torch.randn(num_rois, 8, 14, 14), [instances])["loss_mask"]
    loss.backward()
    assert loss.isfinite() and (loss > 0) == (num_rois > 0)
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.7])
def test_threshold(threshold):
    """detectron2's masks at 0.5 are those that it would get at the threshold."""
    torch.manual_seed(0)
    head = build_mask_head(make_cfg(THRESHOLD=threshold), SHAPE).eval()
    torch.nn.init.normal_(head.predictor.weight, std=2.0)
    plain = MaskRCNNConvUpsampleHead(make_cfg(), SHAPE).eval()
    plain.load_state_dict(head.state_dict())
    x = torch.randn(2, 8, 14, 14)
    ours = detector_postprocess(head(x, make_instances())[0], 90, 120)
    expected = detector_postprocess(
        plain(x, make_instances())[0], 90, 120, mask_threshold=threshold
    )
    default = detector_postprocess(plain(x, make_instances())[0], 90, 120)
    assert torch.equal(ours.pred_masks, expected.pred_masks)
    assert not torch.equal(ours.pred_masks, default.pred_masks)


def test_errors():
    with pytest.raises(UserError, match=r"THRESHOLD must be in \(0, 1\), got 1"):
        build_mask_head(make_cfg(THRESHOLD=1.0), SHAPE)
    with pytest.raises(UserError, match="Unknown activation"):
        build_mask_head(make_cfg(ACTIVATION="rely"), SHAPE)
    with pytest.raises(UserError, match="UPSAMPLE must be deconv or carafe, got 'bilinear'"):
        build_mask_head(make_cfg(UPSAMPLE="bilinear"), SHAPE)
    with pytest.raises(UserError, match="MASK_HEAD.PREDICTOR must be conv or normed, got 'linear'"):
        build_mask_head(make_cfg(PREDICTOR="linear"), SHAPE)
    with pytest.raises(UserError, match="set CONV_DIM to the 8 input channels, not 16"):
        build_mask_head(make_cfg(UPSAMPLE="carafe", NUM_CONV=0, CONV_DIM=16), SHAPE)
