"""Compare class scores with their closed forms and with detectron2's predictor."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det import add_apa_config
from apa_det.errors import UserError
from apa_det.layers import normed_linear, wrapped_cauchy_linear
from apa_det.modeling import APAFastRCNNOutputLayers
from apa_det.modeling.losses import DropLoss

K = 5
SHAPE = ShapeSpec(channels=16)


def make(cls=APAFastRCNNOutputLayers, **kwargs):
    torch.manual_seed(0)
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return cls(SHAPE, box2box_transform=transform, num_classes=K, **kwargs)


def make_proposals(classes, boxes=None):
    n = len(classes)
    proposals = Instances((100, 100))
    start = torch.rand(n, 2) * 50
    boxes = torch.cat([start, start + 10 + torch.rand(n, 2) * 30], dim=1)
    proposals.proposal_boxes = Boxes(boxes)
    proposals.gt_boxes = Boxes(boxes + 1)
    proposals.gt_classes = torch.tensor(classes, dtype=torch.long)
    return [proposals]


def eta(score, z, predictor):
    if score == "gumbel":
        return torch.exp(-torch.exp(-z))
    lambda_ = predictor.score.lambda_param.double().flatten()
    kappa = predictor.score.kappa_param.double().flatten()
    return (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_detectron2_scores(score):
    theirs = make(FastRCNNOutputLayers, use_sigmoid_ce=score == "sigmoid")
    ours = make(class_score=score)
    ours.load_state_dict(theirs.state_dict())
    x, proposals = torch.randn(7, 16), make_proposals([0, 1, 5, 5, 2, 4, 5])
    with EventStorage():
        losses = [p.losses(p(x), proposals) for p in (ours, theirs)]
    assert losses[0] == losses[1]
    probabilities = [p.predict_probs(p(x), proposals)[0] for p in (ours, theirs)]
    assert torch.equal(*probabilities)


@pytest.mark.parametrize("score", ["gumbel", "apa"])
@pytest.mark.parametrize("per_class", [False, True])
def test_scores_and_loss(score, per_class):
    predictor = make(
        class_score=score,
        score_per_class=per_class,
        score_lambda_range=(0.2, 2.0),
        score_kappa_range=(0.5, 1.5),
        score_prior=0.02,
    )
    if score == "apa":
        assert predictor.score.lambda_param.numel() == (K if per_class else 1)
    prior = eta(score, predictor.cls_score.bias.double(), predictor)
    torch.testing.assert_close(prior, torch.full_like(prior, 0.02), rtol=1e-4, atol=0)

    with torch.no_grad():
        predictor.cls_score.weight.normal_()
    x = torch.randn(6, 16)
    classes = [0, 3, 5, 5, 1, 5]
    proposals = make_proposals(classes)
    z = (x @ predictor.cls_score.weight.T + predictor.cls_score.bias).detach().double()
    expected = eta(score, z, predictor)
    predictions = predictor(x)
    (probabilities,) = predictor.predict_probs(predictions, proposals)
    torch.testing.assert_close(probabilities[:, :-1].double(), expected, rtol=1e-4, atol=1e-7)

    target = F.one_hot(torch.tensor(classes), K + 1)[:, :K]
    likelihood = torch.where(target == 1, expected, 1 - expected)
    with EventStorage() as storage:
        losses = predictor.losses(predictions, proposals)
        assert 0 <= storage.latest()["fast_rcnn/cls_accuracy"][0] <= 1
    torch.testing.assert_close(
        losses["loss_cls"].double(), -likelihood.log().sum() / 6, rtol=1e-4, atol=1e-5
    )
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in predictor.parameters())


def test_accuracy_counts_a_score_above_one_half_as_foreground():
    predictor = make(class_score="gumbel")
    with torch.no_grad():
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([-3.0, 0.3, 0.4, -1.0, 0.0]))
    with EventStorage() as storage:
        predictor.losses(predictor(torch.zeros(4, 16)), make_proposals([2, 1, 5, 2]))
        assert storage.latest()["fast_rcnn/cls_accuracy"][0] == 0.5
        assert storage.latest()["fast_rcnn/fg_cls_accuracy"][0] == pytest.approx(2 / 3)
        assert storage.latest()["fast_rcnn/false_negative"][0] == 0
    with torch.no_grad():
        predictor.cls_score.bias.fill_(0.36)  # e^(−e^(−0.3665)) = 1/2
    with EventStorage() as storage:
        predictor.losses(predictor(torch.zeros(4, 16)), make_proposals([2, 1, 5, 2]))
        assert storage.latest()["fast_rcnn/false_negative"][0] == 1


@pytest.mark.parametrize("score", ["gumbel", "apa"])
def test_any_logit(score):
    predictor = make(class_score=score, score_lambda_range=(0.0, 1.0))
    for value in (-1e4, -200.0, 200.0, 1e4):
        with torch.no_grad():
            predictor.cls_score.bias.fill_(value)
        for classes in ([0, 1, 2], [5, 5, 5]):
            predictor.zero_grad()
            proposals = make_proposals(classes)
            with EventStorage():
                loss = predictor.losses(predictor(torch.randn(3, 16)), proposals)["loss_cls"]
            loss.backward()
            assert loss.isfinite()
            assert all(p.grad is None or p.grad.isfinite().all() for p in predictor.parameters())


@pytest.mark.parametrize("score", ["sigmoid", "gumbel", "apa"])
def test_federated_loss(score):
    """Classes that are neither labels nor sampled get no gradient."""
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])  # class 2 is never drawn
    predictor = make(
        class_score=score,
        use_fed_loss=True,
        fed_loss_num_classes=4,
        get_fed_loss_cls_weights=lambda: weights,
    )
    with EventStorage():
        losses = predictor.losses(predictor(torch.randn(4, 16)), make_proposals([0, 5, 1, 5]))
    losses["loss_cls"].backward()
    drawn = predictor.cls_score.weight.grad[:K].abs().sum(dim=1) > 0
    assert drawn[0] and drawn[1] and not drawn[2]
    assert drawn.sum() < K


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "gumbel", "apa"])
def test_no_proposals(score):
    predictor = make(class_score=score)
    proposals = make_proposals([])
    with EventStorage():
        losses = predictor.losses(predictor(torch.zeros(0, 16)), proposals)
    assert all(loss == 0 for loss in losses.values())
    instances, _ = predictor.inference(predictor(torch.zeros(0, 16)), proposals)
    assert len(instances[0]) == 0


@pytest.mark.parametrize("score", ["gumbel", "apa"])
def test_inference_threshold_and_autocast(score):
    predictor = make(class_score=score, test_score_thresh=0.3, test_topk_per_image=4)
    with torch.no_grad():
        predictor.cls_score.weight.normal_(std=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, _ = predictor(torch.randn(20, 16))
    proposals = make_proposals([0] * 20)
    predictions = scores, torch.zeros(20, 4 * K)
    assert predictor.predict_probs(predictions, proposals)[0].dtype == torch.float32
    instances, _ = predictor.inference(predictions, proposals)
    assert 0 < len(instances[0]) <= 4 and (instances[0].scores > 0.3).all()


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "gumbel", "apa"])
@pytest.mark.parametrize("layer", ["normed", "wrapped_cauchy"])
def test_predictors(score, layer):
    predictor = make(class_score=score, predictor=layer, predictor_temperature=50.0)
    cls_score = predictor.cls_score
    assert cls_score.out_features == (K if score in ("gumbel", "apa") else K + 1)
    x = torch.randn(4, 16)
    if layer == "normed":
        logits = normed_linear(x, cls_score.weight, cls_score.bias, 50.0)
    else:
        logits = wrapped_cauchy_linear(x, cls_score.weight, cls_score.bias, cls_score.g)
    scores, deltas = predictor(x)
    torch.testing.assert_close(scores, logits)
    if score in ("gumbel", "apa"):
        expected = eta(score, logits.double(), predictor)
        (actual,) = predictor.predict_probs((scores, deltas), make_proposals([0] * 4))
        torch.testing.assert_close(actual[:, :-1].double(), expected, rtol=1e-5, atol=1e-7)
    with EventStorage():
        sum(predictor.losses((scores, predictor(x)[1]), make_proposals([0, 1, 5, 5])).values())


def test_wrapped_cauchy_softmax_is_cross_entropy():
    predictor = make(predictor="wrapped_cauchy", cls_agnostic_bbox_reg=True)
    assert predictor.bbox_pred.out_features == 4
    x, classes = torch.randn(4, 16), [0, 1, 5, 5]
    scores, deltas = predictor(x)
    with EventStorage():
        loss = predictor.losses((scores, deltas), make_proposals(classes))["loss_cls"]
    expected = -scores.log_softmax(dim=1)[range(4), classes].mean()
    torch.testing.assert_close(loss, expected)


def test_published_initialization():
    predictor = make(class_score="gumbel", predictor_weight_init=0.001, predictor_bias_init=-2.0)
    assert (predictor.cls_score.weight == 0.001).all() and (predictor.cls_score.bias == -2).all()


@pytest.mark.parametrize("score", ["sigmoid", "gumbel", "apa"])
def test_logit_clamp(score):
    """Training uses the clamped logits, without gradient beyond the clamp; inference does not."""
    logits = torch.tensor([-30.0, -2.0, 9.0, 30.0, 200.0])

    def run(clamp, bias, training=True):
        predictor = make(class_score=score, logit_clamp=clamp).train(training)
        with torch.no_grad():
            predictor.cls_score.bias[:K] = bias
        scores, deltas = predictor(torch.zeros(2, 16))
        with EventStorage():
            loss = predictor.losses((scores, deltas), make_proposals([0, 5]))["loss_cls"]
        loss.backward()
        return scores, loss, predictor.cls_score.bias.grad[:K]

    _, loss, gradient = run(10.0, logits)
    _, expected, _ = run(0.0, logits.clamp(-10, 10))
    torch.testing.assert_close(loss, expected)
    assert (gradient != 0).tolist() == [False, True, True, False, False]
    clamped, free = (run(clamp, logits, training=False)[0] for clamp in (10.0, 0.0))
    assert torch.equal(clamped, free)


def set_image_counts(name, counts):
    counts = [{"id": i, "image_count": n} for i, n in enumerate(counts, start=1)]
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(class_image_count=counts, num_images=10)


@pytest.mark.parametrize("score", ["sigmoid", "gumbel", "apa"])
def test_drop_loss(score):
    """No label is scarce, so the share of scarce labels is 0 and scarce classes get no gradient."""
    loss = DropLoss(K, datasets="drop_loss_data", threshold=0.5)
    predictor = make(class_score=score, class_loss=loss)
    set_image_counts("drop_loss_data", [9, 1, 9, 1, 9])
    for _ in range(2):
        predictor.zero_grad()
        with EventStorage():
            losses = predictor.losses(
                predictor(torch.randn(5, 16)), make_proposals([0, 5, 2, 5, 4])
            )
        losses["loss_cls"].backward()
        kept = predictor.cls_score.weight.grad[:K].abs().sum(dim=1) > 0
        assert kept.tolist() == [True, False, True, False, True]
        set_image_counts("drop_loss_data", [9] * 5)  # looked up only once
    assert not any("scarce" in name for name in predictor.state_dict())


def test_drop_loss_of_other_classes():
    set_image_counts("drop_loss_four", [1] * 4)
    predictor = make(class_score="gumbel", class_loss=DropLoss(K, datasets=["drop_loss_four"]))
    message = "DropLoss got class frequencies of 4 classes for a predictor of 5"
    with EventStorage(), pytest.raises(UserError, match=message):
        predictor.losses(predictor(torch.randn(2, 16)), make_proposals([0, 5]))


def cfg_with(**head):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.update(head)
    return cfg


def test_from_config():
    assert APAFastRCNNOutputLayers(cfg_with(), SHAPE).class_score == "softmax"
    sigmoid = APAFastRCNNOutputLayers(cfg_with(USE_SIGMOID_CE=True), SHAPE)
    assert sigmoid.class_score == "sigmoid" and sigmoid.use_sigmoid_ce
    learned = APAFastRCNNOutputLayers(cfg_with(CLASS_SCORE="apa", SCORE_PER_CLASS=True), SHAPE)
    assert learned.score.lambda_param.shape == (1, 80, 1, 1)
    assert learned.cls_score.out_features == 80
    cfg = cfg_with(CLASS_SCORE="gumbel", USE_DROP_LOSS=True, DROP_LOSS_THRESHOLD=0.5)
    cfg.DATASETS.TRAIN = ("box_predictor_data",)
    predictor = APAFastRCNNOutputLayers(cfg, SHAPE)  # needs no dataset to build
    counts = [{"id": i, "image_count": i} for i in range(80, 0, -1)]
    MetadataCatalog.get("box_predictor_data").set(class_image_count=counts, num_images=100)
    with EventStorage():
        predictor.losses(predictor(torch.randn(2, 16)), make_proposals([0, 80]))
    scarce = predictor.class_loss.class_values(torch.device("cpu"))
    assert scarce.tolist() == [True] * 49 + [False] * 31


@pytest.mark.parametrize(
    "head,message",
    [
        (dict(CLASS_SCORE="logit"), "CLASS_SCORE must be one of .*gumbel.* got 'logit'"),
        (dict(CLASS_SCORE="softmax", USE_SIGMOID_CE=True), "contradicts"),
        (dict(CLASS_SCORE="apa", SCORE_KAPPA_RANGE=[-1.0, 1.0]), r"KAPPA_RANGE must be positive"),
        (dict(CLASS_SCORE="apa", SCORE_PRIOR=0.0), r"PRIOR must be in \(0, 1\), got 0"),
        (dict(PREDICTOR="cosine"), "PREDICTOR must be one of .*wrapped_cauchy; got 'cosine'"),
        (dict(PREDICTOR="normed", PREDICTOR_TEMPERATURE=0.0), "temperature must be positive"),
        (dict(LOGIT_CLAMP=-1.0), "LOGIT_CLAMP must be >= 0, got -1"),
        (dict(USE_DROP_LOSS=True), "DropLoss supports .* sigmoid, gumbel, apa, but .* is softmax"),
    ],
)
def test_errors(head, message):
    with pytest.raises(UserError, match=message):
        APAFastRCNNOutputLayers(cfg_with(**head), SHAPE)
