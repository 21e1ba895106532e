import json
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
from apa_det.modeling.calibration import fracal, fracal_binary, logit_adjustment, nor_cal, tau_norm

COUNTS = [1000, 40, 3]
NAMES = ("FRACAL", "NorCal", "LogitAdjustment", "TauNorm")
NUM_IMAGES = 1200


@pytest.fixture
def dataset(tmp_path):
    """Boxes of class 0 on a 30 x 30 lattice, of class 1 on a line, of class 2 on a point."""
    name = "calibration_train"
    boxes = [
        *([0, i % 30 * 3 + 1, i // 30 % 30 * 3 + 1, 1, 1] for i in range(COUNTS[0])),
        *([1, 2 * i, 2 * i, 2, 2] for i in range(COUNTS[1])),
        *([2, 50, 50, 0, 0] for i in range(COUNTS[2])),
    ]
    content = {
        "images": [
            {"id": i, "width": 90, "height": 90, "file_name": f"{i}.jpg"} for i in range(NUM_IMAGES)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": box[0], "bbox": box[1:]}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(3)],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    MetadataCatalog.get(name).set(
        json_file=str(path),
        class_image_count=[{"id": i + 1, "image_count": n} for i, n in enumerate(COUNTS)],
        thing_dataset_id_to_contiguous_id={i: i for i in range(3)},
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


def frequency_terms(shares):
    return [-math.log10(p) + math.log10(1 / len(shares)) for p in shares]


def literal_fracal(logits, shares, dimensions, strength):
    """The softmax form, one number at a time: softmax(z + w) / Φ^λ, renormalized."""
    w = [strength * term for term in frequency_terms(shares)] + [0.0]
    exponentials = [math.exp(z + a) for z, a in zip(logits, w, strict=True)]
    probabilities = [e / sum(exponentials) for e in exponentials]
    divided = [
        p / phi ** (2.0 * strength)
        for p, phi in zip(probabilities, [*dimensions, 1.0], strict=True)
    ]
    return [p / sum(divided) for p in divided]


def literal_fracal_binary(log_odds, shares, dimensions, strength):
    """The sigmoid form: σ(z) · σ(z + w + f)."""
    powers = [phi ** (2.0 * strength) for phi in dimensions]
    scores = []
    for z, w, power in zip(log_odds, frequency_terms(shares), powers, strict=True):
        f = -math.log10(power / sum(powers)) + math.log10(1 / len(shares))
        first, second = (1 / (1 + math.exp(-x)) for x in (z, z + strength * w + f))
        scores.append(first * second**strength)
    return scores


classes = st.lists(st.tuples(st.floats(1e-5, 1), st.floats(1, 2)), min_size=1, max_size=5)


@given(classes, st.floats(0, 1.5), st.integers(0, 99))
def test_fracal_is_its_restatement(values, strength, seed):
    shares, dimensions = torch.tensor(values).double().unbind(1)
    logits = (
        3 * torch.randn(len(values) + 1, generator=torch.Generator().manual_seed(seed)).double()
    )
    ours = fracal(logits[None], shares, dimensions, strength).softmax(-1)[0]
    literal = literal_fracal(logits.tolist(), shares.tolist(), dimensions.tolist(), strength)
    torch.testing.assert_close(ours, torch.tensor(literal), atol=1e-6, rtol=1e-4)
    ours = fracal_binary(logits[None], shares, dimensions, strength).sigmoid()[0, :-1]
    args = logits[:-1].tolist(), shares.tolist(), dimensions.tolist(), strength
    torch.testing.assert_close(
        ours, torch.tensor(literal_fracal_binary(*args)), atol=1e-7, rtol=1e-4
    )


def test_fracal_by_hand():
    """Two classes with shares of 1/2 and 1/200 have w = 0 and 2. Φ of √2 halves a probability."""
    shares, dimensions = torch.tensor([0.5, 0.005]), torch.tensor([2**0.5, 1.0])
    scores = fracal(torch.zeros(1, 3), shares, dimensions, 1.0).softmax(-1)[0]
    masses = torch.tensor([1 / 2, math.exp(2), 1.0])
    torch.testing.assert_close(scores, masses / masses.sum())
    # f = -log10(2/3) + log10(1/2) and -log10(1/3) + log10(1/2)
    scores = fracal_binary(torch.zeros(1, 3), shares, dimensions, 1.0).sigmoid()[0, :2]
    seconds = torch.tensor([math.log10(0.75), 2 + math.log10(1.5)]).sigmoid()
    torch.testing.assert_close(scores, 0.5 * seconds)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_limits_of_binary_fracal(strength):
    """Scores stay between 0 and 1, and increase with the given ones."""
    z = torch.tensor([-math.inf, -1e4, -90.0, -20.0, -1.0, 0.0, 5.0, 20.0, 90.0, 1e4, math.inf])
    z = z[:, None].expand(-1, 3)
    shares, dimensions = torch.tensor([0.9, 1e-5]), torch.tensor([2.0, 1.0])
    scores = fracal_binary(z, shares, dimensions, strength).sigmoid()[:, :2]
    assert (scores[0] == 0).all() and (scores[-1] == 1).all()
    assert (scores[1:] >= scores[:-1]).all() and (scores <= z[:, :2].sigmoid() + 1e-6).all()


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("score", CLASS_SCORES)
def test_fracal_in_the_predictor(score, strength, dataset):
    """Gumbel and APA scores are calibrated by their log-odds."""
    x = torch.randn(6, 8)
    plain = probabilities(build(score), x).double()
    calibrated = probabilities(build(score, "FRACAL", strength, dataset), x)
    shares = [count / NUM_IMAGES for count in COUNTS]
    # The lattice: d² cells up to d = 30, then 900 of 31 x 31. The line: d cells up to d = 6.
    dimensions = [lattice_dimension(), 1.0, 1.0]
    for row, scores in zip(plain, calibrated.tolist(), strict=True):
        if score == "softmax":
            expected = literal_fracal(row.log().tolist(), shares, dimensions, strength)
        else:
            row = row[:3]
            expected = literal_fracal_binary(row.logit().tolist(), shares, dimensions, strength)
        assert scores[: len(expected)] == pytest.approx(expected, rel=2e-4, abs=1e-7)


def lattice_dimension():
    x = torch.arange(1, 32).double().log()
    y = torch.tensor([d**2 for d in range(1, 31)] + [900]).double().log()
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x @ x)).item()


def test_fracal_needs_a_file(dataset):
    MetadataCatalog.get("no_file").set(class_image_count=[{"id": 1, "image_count": 1}])
    with pytest.raises(UserError, match="annotation file of the dataset no_file"):
        probabilities(build("softmax", "FRACAL", 1.0, "no_file"), torch.randn(2, 8))
    MetadataCatalog.remove("no_file")


def test_calibrations_share_no_class_values(dataset):
    """A predictor whose calibration is replaced uses the class values of the new one."""
    x, predictor = torch.randn(6, 8), build("sigmoid", "NorCal", 0.5, dataset)
    probabilities(predictor, x)
    other = build("sigmoid", "FRACAL", 0.5, dataset)
    predictor.calibration = other.calibration
    assert torch.equal(probabilities(predictor, x), probabilities(other, x))


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
    for name in ("NorCal", "LogitAdjustment", "FRACAL"):
        plain = probabilities(build("softmax"), x)[:, :3]
        calibrated = probabilities(build("softmax", name, 0.5, dataset), x)[:, :3]
        assert (calibrated[:, 2] / calibrated[:, 0] > 5 * plain[:, 2] / plain[:, 0]).all()


def test_errors(dataset):
    with pytest.raises(
        UserError, match="CALIBRATION must be one of FRACAL, LogitAdj.* got 'Norcal'"
    ):
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
