"""Every registered loss in the box predictor: keys, training, inference, checkpoints."""

import copy
import re

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from apa_det import add_apa_config
from apa_det.engine import StrictCheckpointer
from apa_det.engine.ema import build_ema
from apa_det.errors import UserError
from apa_det.modeling import APAFastRCNNOutputLayers
from apa_det.modeling.losses import (
    BOX_CLASS_LOSS_REGISTRY,
    BalancedGroupSoftmax,
    BoxClassLoss,
    SeesawLoss,
    group_softmax_probabilities,
    log_odds,
    look_up_frequencies,
)

K = 5
SHAPE = ShapeSpec(channels=16)
SCORES = ("softmax", "sigmoid", "gumbel", "apa")
LOSSES = ("CrossEntropy", "BalancedSoftmax", "FocalLoss", "DropLoss", "EqualizationLoss")
LOSSES += ("EqualizationLossV2", "FederatedLoss", "SeesawLoss", "BalancedGroupSoftmax")
LOSSES += ("EffectiveClassMarginLoss",)
SUPPORTED = [
    (loss, score)
    for loss in LOSSES
    for score in SCORES
    if score in BOX_CLASS_LOSS_REGISTRY.get(loss).class_scores
]


@pytest.fixture
def make_cfg(dataset):
    def make(**head):
        cfg = get_cfg()
        add_apa_config(cfg)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = K
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1e-6
        cfg.MODEL.ROI_BOX_HEAD.merge_from_list([x for pair in head.items() for x in pair])
        cfg.DATASETS.TRAIN = (dataset([1, 5, 20, 300, 2000], num_images=10_000),)
        return cfg

    return make


@pytest.fixture
def build(make_cfg):
    def build(**head):
        torch.manual_seed(0)
        predictor = APAFastRCNNOutputLayers(make_cfg(**head), SHAPE)
        with torch.no_grad():
            predictor.cls_score.weight.normal_(std=0.3)
        return predictor

    return build


def make_proposals(classes):
    proposals = Instances((100, 100))
    start = torch.rand(len(classes), 2) * 50
    proposals.proposal_boxes = Boxes(torch.cat([start, start + 20], dim=1))
    proposals.gt_boxes = Boxes(proposals.proposal_boxes.tensor + 1)
    proposals.gt_classes = torch.tensor(classes, dtype=torch.long)
    return [proposals]


def step(predictor, classes=(0, 5, 1, 3, 5, 5, 4, 2)):
    x = torch.randn(len(classes), 16)
    with EventStorage() as storage:
        losses = predictor.losses(predictor(x), make_proposals(list(classes)))
        if classes:
            assert 0 <= storage.latest()["fast_rcnn/cls_accuracy"][0] <= 1
    sum(losses.values()).backward()
    return losses["loss_cls"]


def test_every_loss_is_tested():
    names = {name for name, loss in BOX_CLASS_LOSS_REGISTRY if loss.__module__.startswith("apa_")}
    assert names == set(LOSSES)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("loss,score", SUPPORTED)
def test_trains_and_detects(build, loss, score, amp):
    predictor = build(CLASS_LOSS=loss, CLASS_SCORE=score, SCORE_PER_CLASS=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        losses = [step(predictor) for _ in range(3)] + [step(predictor, [5] * 3)]
    assert all(value.isfinite() and value > 0 for value in losses)
    assert all(p.grad.isfinite().all() for p in predictor.parameters())
    assert step(predictor, ()) == 0
    predictor.eval()
    proposals = make_proposals([5] * 6)
    (scores,) = predictor.predict_probs(predictor(torch.randn(6, 16)), proposals)
    assert scores.shape == (6, K + 1) and ((scores >= 0) & (scores <= 1)).all()
    instances, _ = predictor.inference(predictor(torch.randn(6, 16)), proposals)
    assert len(instances[0]) > 0


@pytest.mark.parametrize("score", SCORES)
def test_default_loss_adds_nothing_to_checkpoints(build, score):
    names = build(CLASS_SCORE=score).state_dict()
    assert not any("class_loss" in name for name in names)


def test_keys_that_select_a_loss(build):
    for head, name in [
        (dict(), "CrossEntropy"),
        (dict(CLASS_SCORE="apa", USE_DROP_LOSS=True), "DropLoss"),
        (dict(CLASS_SCORE="apa", USE_DROP_LOSS=True, CLASS_LOSS="DropLoss"), "DropLoss"),
        (dict(USE_SIGMOID_CE=True, USE_FED_LOSS=True), "FederatedLoss"),
    ]:
        assert type(build(**head).class_loss).__name__ == name


def test_keys_reach_the_losses(build):
    weighted = build(
        CLASS_WEIGHTS="effective_number", CLASS_WEIGHTS_BETA=0.9, CLASS_COUNT="instance_count"
    ).class_loss
    assert (weighted.class_weights, weighted.beta) == ("effective_number", 0.9)
    assert weighted.count == "instance_count"
    assert build(CLASS_WEIGHTS=[1.0, 2.0, 1.0, 1.0, 1.0]).class_loss.class_weights[1] == 2
    focal = build(CLASS_LOSS="FocalLoss", CLASS_SCORE="apa", FOCAL_LOSS_GAMMA=1.0).class_loss
    assert (focal.gamma, focal.alpha) == (1.0, 0.25)
    groups = build(CLASS_LOSS="BalancedGroupSoftmax", GROUP_SOFTMAX_BOUNDARIES=[10, 100])
    assert groups.cls_score.out_features == K + 3 + 2


@pytest.mark.parametrize(
    "head,message",
    [
        (dict(CLASS_LOSS="Focal"), "CLASS_LOSS must be one of .*FocalLoss.* got 'Focal'"),
        (
            dict(CLASS_LOSS="SeesawLoss", CLASS_SCORE="gumbel"),
            "SeesawLoss supports the class scores softmax, but .*CLASS_SCORE is gumbel",
        ),
        (
            dict(CLASS_LOSS="FocalLoss"),
            "FocalLoss supports .* sigmoid, gumbel, apa, but .*softmax",
        ),
        (dict(USE_FED_LOSS=True), "FederatedLoss supports .* sigmoid, gumbel, apa, but .*softmax"),
        (
            dict(CLASS_SCORE="apa", CLASS_LOSS="FocalLoss", USE_DROP_LOSS=True),
            "CLASS_LOSS FocalLoss contradicts MODEL.ROI_BOX_HEAD.USE_DROP_LOSS True",
        ),
        (
            dict(CLASS_SCORE="apa", USE_FED_LOSS=True, USE_DROP_LOSS=True),
            "USE_DROP_LOSS True contradicts MODEL.ROI_BOX_HEAD.USE_FED_LOSS True",
        ),
        (
            dict(CLASS_LOSS="SeesawLoss", CLASS_WEIGHTS="inverse"),
            "CLASS_WEIGHTS is supported by CLASS_LOSS CrossEntropy and FocalLoss, not by Seesaw",
        ),
        (
            dict(CLASS_LOSS="BalancedGroupSoftmax", CALIBRATION="NorCal"),
            "CALIBRATION cannot be combined with CLASS_LOSS BalancedGroupSoftmax",
        ),
        (
            dict(CLASS_LOSS="EffectiveClassMarginLoss", CLASS_SCORE="gumbel"),
            "EffectiveClassMarginLoss supports the class scores sigmoid, but .* gumbel",
        ),
        (
            dict(
                CLASS_LOSS="EffectiveClassMarginLoss",
                CLASS_SCORE="sigmoid",
                BACKGROUND_OUTPUT=False,
            ),
            "EffectiveClassMarginLoss has an output of the background: set .*BACKGROUND_OUTPUT to",
        ),
    ],
)
def test_errors(build, head, message):
    with pytest.raises(UserError, match=message):
        build(**head)


def test_losses_of_other_classes(make_cfg):
    cfg = make_cfg(CLASS_LOSS="BalancedSoftmax")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    predictor = APAFastRCNNOutputLayers(cfg, SHAPE)  # needs no dataset to build
    with pytest.raises(UserError, match="frequencies of 5 classes for a predictor of 7"):
        look_up_frequencies(nn.Sequential(predictor))
    cfg.MODEL.ROI_BOX_HEAD.CLASS_COUNT = "images"
    with pytest.raises(UserError, match="CLASS_COUNT must be one of image_count, .* got 'images'"):
        look_up_frequencies(APAFastRCNNOutputLayers(cfg, SHAPE))
    cfg.MODEL.ROI_BOX_HEAD.CLASS_COUNT = "image_count"
    cfg.DATASETS.TRAIN = ("losses_without_counts",)
    with pytest.raises(UserError, match="without_counts does not give the image count"):
        look_up_frequencies(APAFastRCNNOutputLayers(cfg, SHAPE))
    with pytest.raises(UserError, match="SeesawLoss has 7 classes, but the predictor has 5"):
        lazy(class_loss=SeesawLoss(7))


def lazy(**kwargs):
    call = L(APAFastRCNNOutputLayers)(
        input_shape=SHAPE,
        box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
        num_classes=K,
        **kwargs,
    )
    return instantiate(call)


def test_lazy_config():
    predictor = lazy(class_loss=L(SeesawLoss)(num_classes="${..num_classes}", p=0.5))
    assert predictor.class_loss.num_classes == K and predictor.class_loss.p == 0.5
    step(predictor)
    arguments = dict(use_fed_loss=True, get_fed_loss_cls_weights=lambda: torch.ones(K))
    step(lazy(class_score="sigmoid", **arguments))
    with pytest.raises(UserError, match="use_fed_loss or class_loss, not both"):
        lazy(class_loss=L(SeesawLoss)(num_classes=K), **arguments)


def test_third_party_loss(build):
    class Hinge(BoxClassLoss):
        class_scores = ("apa",)

        def __init__(self, cfg):
            super().__init__(cfg.MODEL.ROI_HEADS.NUM_CLASSES)

        def forward(self, logits, gt_classes, curve):
            return (9 + log_odds(logits, curve)).clamp(min=0).mean()

    BOX_CLASS_LOSS_REGISTRY.register(Hinge)
    try:
        assert step(build(CLASS_LOSS="Hinge", CLASS_SCORE="apa")) > 0
        with pytest.raises(UserError, match="Hinge supports the class scores apa, but"):
            build(CLASS_LOSS="Hinge", CLASS_SCORE="gumbel")
    finally:
        BOX_CLASS_LOSS_REGISTRY._obj_map.pop("Hinge")


def test_scores_of_balanced_group_softmax(build):
    predictor = build(CLASS_LOSS="BalancedGroupSoftmax", PREDICTOR="normed")
    step(predictor)
    assert predictor.class_loss.groups.tolist() == [0, 0, 1, 2, 3]
    outputs = predictor.eval()(torch.randn(5, 16))
    scores = predictor.predict_probs(outputs, make_proposals([5] * 2) + make_proposals([5] * 3))
    assert [len(s) for s in scores] == [2, 3]
    expected = group_softmax_probabilities(outputs[0], torch.tensor([0, 0, 1, 2, 3]))
    assert torch.equal(torch.cat(scores), expected)


class Model(nn.Module):
    """Names the predictor as in a detector."""

    def __init__(self, predictor):
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = predictor


@pytest.mark.parametrize(
    "loss,score", [("SeesawLoss", "softmax"), ("EqualizationLossV2", "gumbel")]
)
def test_checkpoints_of_accumulated_statistics(build, tmp_path, caplog, loss, score):
    """They are saved, also with EMA models. Files with and without them can be loaded."""
    plain, trained, resumed = (
        Model(build(CLASS_SCORE=score, CLASS_LOSS=name)) for name in ("", loss, loss)
    )
    ema = build_ema(trained, 0.9)
    for _ in range(2):
        step(trained.roi_heads.box_predictor)
        ema.update_parameters(trained)
    saved = dict(trained.roi_heads.box_predictor.class_loss.named_buffers())
    assert all(buffer.any() for buffer in saved.values())
    for name, buffer in ema.module.roi_heads.box_predictor.class_loss.named_buffers():
        assert torch.equal(buffer, saved[name])

    for name, model in (("plain", plain), ("trained", trained)):
        StrictCheckpointer(model, tmp_path).save(name)
    StrictCheckpointer(resumed).load(str(tmp_path / "trained.pth"))
    step(resumed.roi_heads.box_predictor, ())
    for name, buffer in resumed.roi_heads.box_predictor.class_loss.named_buffers():
        assert torch.equal(buffer, saved[name])
    fresh = Model(build(CLASS_SCORE=score, CLASS_LOSS=loss))
    with caplog.at_level("INFO"):
        StrictCheckpointer(fresh).load(str(tmp_path / "plain.pth"))
    assert re.search(r"plain.pth .*class_loss\.", caplog.text)
    assert not any(buffer.any() for buffer in fresh.roi_heads.box_predictor.class_loss.buffers())
    StrictCheckpointer(plain).load(str(tmp_path / "trained.pth"))


def test_inference_needs_the_groups(build, tmp_path):
    """Files without groups are an error; training uses the dataset's groups, not the file's."""
    model = Model(build(CLASS_LOSS="BalancedGroupSoftmax"))
    name = "roi_heads.box_predictor.class_loss.groups"
    state = {**model.state_dict(), name: torch.tensor([3, 3, 3, 0, 0])}
    torch.save({"model": {k: v for k, v in state.items() if k != name}}, tmp_path / "without.pth")
    torch.save({"model": state}, tmp_path / "with.pth")
    with pytest.raises(ValueError, match="without.pth .*class_loss.groups"):
        StrictCheckpointer(copy.deepcopy(model)).load(str(tmp_path / "without.pth"))
    StrictCheckpointer(model).load(str(tmp_path / "with.pth"))
    loss = model.roi_heads.box_predictor.class_loss
    assert isinstance(loss, BalancedGroupSoftmax) and loss.groups.tolist() == [3, 3, 3, 0, 0]
    step(model.roi_heads.box_predictor)
    assert loss.groups.tolist() == [0, 0, 1, 2, 3]
