import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from apa_det import add_apa_config
from apa_det.errors import UserError
from apa_det.modeling import APAFastRCNNOutputLayers, Calibration
from apa_det.modeling.box_predictor import CLASS_SCORES
from apa_det.modeling.calibration import logit_adjustment, nor_cal, tau_norm

COUNTS = [1000, 40, 3]
NAMES = ("NorCal", "LogitAdjustment", "TauNorm")


@pytest.fixture
def dataset():
    name = "calibration_train"
    MetadataCatalog.get(name).set(
        class_image_count=[{"id": i + 1, "image_count": n} for i, n in enumerate(COUNTS)]
    )
    yield name
    MetadataCatalog.remove(name)


def build(score, name="", strength=0.0, datasets=(), **kwargs):
    torch.manual_seed(0)
    predictor = APAFastRCNNOutputLayers(
        ShapeSpec(channels=8),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=3,
        class_score=score,
        calibration=name,
        calibration_strength=strength,
        calibration_datasets=datasets,
        **kwargs,
    )
    torch.nn.init.normal_(predictor.cls_score.weight)
    return predictor.eval()


def probabilities(predictor, x):
    proposals = [Instances((32, 32), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]] * len(x))))]
    return torch.cat(predictor.predict_probs(predictor(x), proposals))


def test_nor_cal_by_hand():
    """Two classes with a_c = 4 and 1: e^φ_c / a_c is 8/4, 1, and 2 for the background."""
    logits = torch.tensor([[8.0, 1.0, 2.0]]).log()
    scores = nor_cal(logits, torch.tensor([16, 1]), gamma=0.5).softmax(-1)
    torch.testing.assert_close(scores, torch.tensor([[2.0, 1.0, 2.0]]) / 5)
    # A binary score of 0.5 has odds of 1. Divided by 4 they give a score of 1/5.
    binary = nor_cal(torch.zeros(1, 3), torch.tensor([16, 1]), gamma=0.5).sigmoid()
    torch.testing.assert_close(binary[0, :2], torch.tensor([0.2, 0.5]))


def test_logit_adjustment_by_hand():
    """Shares of 1/4 and 3/4 add log 4 and log 4/3, times τ."""
    adjusted = logit_adjustment(torch.zeros(1, 3), torch.tensor([10, 30]), tau=2.0)
    torch.testing.assert_close(adjusted, 2 * torch.tensor([[4.0, 4 / 3, 1.0]]).log())


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=6), st.floats(0, 2), st.integers(0, 99))
def test_logit_adjustment_is_nor_cal_except_for_the_background(counts, strength, seed):
    counts = torch.tensor(counts)
    logits = torch.randn(4, len(counts) + 1, generator=torch.Generator().manual_seed(seed))
    total = counts.clamp(min=1).sum().item()
    expected = nor_cal(logits, counts, strength)
    expected[:, :-1] += strength * math.log(total)
    adjusted = logit_adjustment(logits, counts, strength)
    torch.testing.assert_close(adjusted, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_rows", [3, 4])
def test_tau_norm_equals_layer_with_normalized_weights(num_rows):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, num_rows).double(), torch.randn(5, 8).double()
    layer.weight.data *= torch.tensor([0.1, 1, 30, 5][:num_rows]).double()[:, None]
    ours = tau_norm(layer(x), layer.weight, layer.bias, 3, 0.7)
    with torch.no_grad():
        layer.weight[:3] /= layer.weight[:3].norm(dim=1, keepdim=True) ** 0.7
    torch.testing.assert_close(ours.double(), layer(x), atol=1e-5, rtol=1e-5)


def test_tau_norm_of_a_row_of_zeros():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    bias = torch.tensor([0.5, 0.0])
    logits = torch.tensor([[0.5, 10.0]])
    normed = tau_norm(logits, weight, bias, 2, 1.0)
    torch.testing.assert_close(normed, torch.tensor([[0.5, 2.0]]))


@pytest.mark.parametrize("score", CLASS_SCORES)
@pytest.mark.parametrize("name", NAMES)
def test_zero_strength_changes_nothing(score, name, dataset):
    x = torch.randn(6, 8)
    plain = probabilities(build(score), x)
    calibrated = probabilities(build(score, name, 0.0, dataset), x)
    torch.testing.assert_close(calibrated[:, :3], plain[:, :3])


@pytest.mark.parametrize("score", CLASS_SCORES[1:])
def test_binary_scores(score, dataset):
    x = torch.randn(6, 8)
    plain = probabilities(build(score), x)[:, :3].double()
    odds = plain / (1 - plain) / torch.tensor(COUNTS).double() ** 0.3
    calibrated = probabilities(build(score, "NorCal", 0.3, dataset), x)[:, :3]
    torch.testing.assert_close(calibrated.double(), odds / (1 + odds), atol=1e-5, rtol=1e-4)


def test_softmax(dataset):
    x = torch.randn(6, 8)
    predictor = build("softmax", "NorCal", 0.6, dataset)
    exponentials = predictor(x)[0].double().exp()
    exponentials[:, :3] /= torch.tensor(COUNTS).double() ** 0.6
    expected = exponentials / exponentials.sum(dim=1, keepdim=True)
    torch.testing.assert_close(probabilities(predictor, x).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("score", CLASS_SCORES)
def test_tau_norm_in_the_predictor(score):
    """TauNorm equals a predictor with normalized weights, for every class score."""
    x = torch.randn(6, 8)
    calibrated = probabilities(build(score, "TauNorm", 1.0), x)
    plain = build(score)
    with torch.no_grad():
        plain.cls_score.weight[:3] /= plain.cls_score.weight[:3].norm(dim=1, keepdim=True)
    torch.testing.assert_close(calibrated[:, :3], probabilities(plain, x)[:, :3])


@pytest.mark.parametrize("name", NAMES)
def test_training_and_checkpoints_are_unchanged(name, dataset):
    plain, calibrated = build("apa"), build("apa", name, 0.5, dataset)
    assert list(plain.state_dict()) == list(calibrated.state_dict())
    x = torch.randn(6, 8)
    for ours, theirs in zip(calibrated.train()(x), plain.train()(x), strict=True):
        assert torch.equal(ours, theirs)


def test_rare_classes_gain(dataset):
    x = torch.randn(50, 8)
    for name in ("NorCal", "LogitAdjustment"):
        plain = probabilities(build("softmax"), x)[:, :3]
        calibrated = probabilities(build("softmax", name, 0.5, dataset), x)[:, :3]
        assert (calibrated[:, 2] / calibrated[:, 0] > 5 * plain[:, 2] / plain[:, 0]).all()


def test_errors(dataset):
    with pytest.raises(UserError, match="CALIBRATION must be one of LogitAdj.* got 'Norcal'"):
        build("softmax", "Norcal", 0.5)
    with pytest.raises(UserError, match="CALIBRATION_STRENGTH must be >= 0, got -1"):
        Calibration(-1)
    with pytest.raises(
        UserError, match="STRENGTH 0.5 has no effect without MODEL.ROI_BOX_HEAD.CALIBRATION"
    ):
        build("softmax", "", 0.5)
    with pytest.raises(
        UserError, match="TauNorm needs MODEL.ROI_BOX_HEAD.PREDICTOR linear, got normed"
    ):
        build("softmax", "TauNorm", 0.5, predictor="normed")
    with pytest.raises(UserError, match="unread does not give the image count"):
        probabilities(build("softmax", "NorCal", 0.5, ["unread"]), torch.randn(2, 8))
    MetadataCatalog.remove("unread")
    other = build("softmax", "NorCal", 0.5, dataset)
    other.num_classes = 4
    with pytest.raises(
        UserError, match="NorCal got class frequencies of 3 classes for a predictor of 4"
    ):
        probabilities(other, torch.randn(2, 8))


def test_config(dataset):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    assert APAFastRCNNOutputLayers(cfg, ShapeSpec(channels=8)).calibration is None
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION = "NorCal"
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH = 0.6
    cfg.DATASETS.TRAIN = (dataset,)
    predictor = APAFastRCNNOutputLayers(cfg, ShapeSpec(channels=8))
    assert predictor.calibration.strength == 0.6
    assert predictor.calibration_datasets == (dataset,)
