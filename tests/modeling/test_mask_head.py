"""The mask head against detectron2's, and its threshold."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead, build_mask_head
from detectron2.structures import Boxes, Instances

from apa_det import AGLU, add_apa_config

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


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.7])
def test_threshold(threshold):
    """What detectron2 pastes and cuts at 0.5 is what it would cut at the threshold."""
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
    with pytest.raises(ValueError, match=r"lies in \(0, 1\)"):
        build_mask_head(make_cfg(THRESHOLD=1.0), SHAPE)
    with pytest.raises(ValueError, match="Unknown activation"):
        build_mask_head(make_cfg(ACTIVATION="rely"), SHAPE)
