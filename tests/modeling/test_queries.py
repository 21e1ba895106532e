"""Query detectors with a DETR-style criterion, in the two forms of DETR and Deformable DETR."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from torch import nn

from apa_det.errors import UserError
from apa_det.modeling import long_tailed_queries, losses

K, QUERIES, LAYERS = 6, 9, 2
INDICES = [(torch.tensor([1, 4]), torch.tensor([1, 0])), (torch.tensor([], dtype=torch.int64),) * 2]
TARGETS = [{"labels": torch.tensor([2, 5])}, {"labels": torch.tensor([], dtype=torch.int64)}]


class SetCriterion(nn.Module):
    """The interface of DETR's criterion, with a fixed matching and the class loss only."""

    def __init__(self, softmax, name):
        super().__init__()
        self.num_classes, self.matcher, self.weight_dict = K, lambda *_: INDICES, {name: 2.0}
        self.softmax, self.name, self.eos_coef = softmax, name, 0.1
        self.register_buffer("empty_weight", torch.tensor([1.0] * K + [0.1]))

    def loss_labels(self, outputs, targets, indices, num_boxes, log=True):
        logits = outputs["pred_logits"]
        target = torch.full(logits.shape[:2], K)
        for image, (queries, objects) in enumerate(indices):
            target[image, queries] = targets[image]["labels"][objects]
        if self.softmax:
            loss = F.cross_entropy(logits.transpose(1, 2), target, self.empty_weight)
        else:
            hot = F.one_hot(target, K + 1)[..., :K].float()
            loss = F.binary_cross_entropy_with_logits(logits, hot, reduction="sum") / num_boxes
        return {self.name: loss}

    def get_loss(self, loss, outputs, targets, indices, num_boxes, **kwargs):
        return {"labels": self.loss_labels}[loss](outputs, targets, indices, num_boxes, **kwargs)

    def forward(self, outputs, targets):
        indices = self.matcher(outputs, targets)
        result = self.get_loss("labels", outputs, targets, indices, 2.0, log=False)
        for i, auxiliary in enumerate(outputs["aux_outputs"]):
            terms = self.get_loss("labels", auxiliary, targets, indices, 2.0)
            result |= {f"{name}_{i}": loss for name, loss in terms.items()}
        return result


class Detector(nn.Module):
    """Queries through classifiers, whose list has a second name, as in DINO."""

    def __init__(self, softmax, name="loss_class", shared=False):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, K + softmax) for _ in range(LAYERS)]
        self.class_embed = nn.ModuleList([layers[0]] * LAYERS if shared else layers)
        self.decoder = nn.Module()
        self.decoder.class_embed = self.class_embed
        self.criterion = SetCriterion(softmax, name)
        for layer in layers:
            nn.init.constant_(layer.bias, -4.6)

    def logits(self, x):
        return [layer(x) for layer in self.class_embed]

    def forward(self, x):
        *others, last = self.logits(x)
        auxiliary = [{"pred_logits": logits} for logits in others]
        return self.criterion({"pred_logits": last, "aux_outputs": auxiliary}, TARGETS)


@pytest.fixture
def queries():
    return torch.randn(2, QUERIES, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("softmax, name", [(False, "loss_class"), (True, "loss_ce")])
def test_cross_entropy_is_that_of_the_criterion(queries, softmax, name):
    """apa_det's plain cross-entropy, with the weights and normalizers of the criterion."""
    model = Detector(softmax, name)
    expected = model(queries)
    original, state = model.criterion, copy.deepcopy(model.state_dict())
    long_tailed_queries(model, losses.CrossEntropy(K))
    assert isinstance(model.criterion, SetCriterion) and type(original) is SetCriterion
    assert model.state_dict().keys() == state.keys()
    actual = model(queries)
    assert actual.keys() == expected.keys() == {name, f"{name}_0"}
    for key, loss in actual.items():
        torch.testing.assert_close(loss, expected[key])


@pytest.mark.parametrize("score", ["gumbel", "apa"])
@pytest.mark.parametrize("softmax", [False, True])
def test_scores(queries, score, softmax):
    """The sigmoid of the new logits is η of the old ones, and the prior stays."""
    model = Detector(softmax)
    old = copy.deepcopy(model)
    prior = torch.tensor(-4.6).double().sigmoid() if not softmax else 0.01
    keys = dict(score_lambda_range=(0.4, 0.4), score_kappa_range=(1.3, 1.3), score_per_class=True)
    long_tailed_queries(model, class_score=score, **keys)
    lambda_, kappa = (0.4, 1.3) if score == "apa" else (1e-9, 1.0)

    def eta(z):
        return (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)

    old.load_state_dict(model.state_dict(), strict=False)
    for new_logits, logits in zip(model.logits(queries), old.logits(queries), strict=True):
        expected = eta(logits.detach().double()[..., :K])
        actual = new_logits.detach().double().sigmoid()[..., :K]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
        assert not softmax or (new_logits[..., K] == 0).all()
    start = model.class_embed[0](torch.zeros(1, 4)).detach().double().sigmoid()[0, :K]
    torch.testing.assert_close(start, torch.full_like(start, prior), rtol=1e-4, atol=0)
    assert model.decoder.class_embed[1] is model.class_embed[1]
    sum(model(queries).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_shared_classifier_stays_shared():
    model = long_tailed_queries(Detector(False, shared=True), class_score="apa")
    assert model.class_embed[0] is model.class_embed[1]
    assert len(list(model.parameters())) == 4


def test_long_tailed_losses(queries):
    """Gumbel scores with equalization loss v2: the same as the loss on all queries."""
    model = long_tailed_queries(
        Detector(False), losses.EqualizationLossV2(K), class_score="gumbel", score_prior=0.05
    )
    labels = torch.full((2, QUERIES), K)
    labels[0, 1], labels[0, 4] = 5, 2
    logits = [x.detach().flatten(0, 1) for x in model.logits(queries)]
    plain, expected = losses.EqualizationLossV2(K), []
    for x in (logits[1], logits[0]):  # the criterion takes the last layer first
        expected.append(plain(x, labels.flatten(), losses.SIGMOID) * 2 * QUERIES / 2.0)
    actual = model(queries)
    torch.testing.assert_close([actual["loss_class"], actual["loss_class_0"]], expected)
    gradients = model.state_dict()["criterion.class_loss.positive_gradients"]
    assert torch.equal(gradients, plain.positive_gradients) and gradients.sum() > 0


def test_softmax_losses(queries):
    MetadataCatalog.get("queries_train").set(
        class_image_count=[{"id": i, "image_count": 3**i} for i in range(K)]
    )
    model = Detector(True)
    expected = copy.deepcopy(model)
    shift = losses.log_prior_ratios(3 ** torch.arange(K))
    for layer in expected.class_embed:
        layer.bias.data[:K] += shift
    loss = losses.BalancedSoftmax(K, datasets="queries_train")
    long_tailed_queries(model, loss)
    torch.testing.assert_close(list(model(queries).values()), list(expected(queries).values()))
    MetadataCatalog.remove("queries_train")


@pytest.mark.parametrize(
    "softmax, arguments, message",
    [
        (False, dict(class_loss=losses.SeesawLoss(K)), "SeesawLoss supports the class scores soft"),
        (
            True,
            dict(class_loss=losses.FocalLoss(K)),
            "FocalLoss supports .* class_score is softmax",
        ),
        (False, dict(class_score="softmax"), "must be one of sigmoid, gumbel, apa here"),
        (False, dict(classifiers="*cls*"), r"The classifiers \*cls\* must be linear layers with"),
        (False, dict(class_loss=losses.FocalLoss(3)), "has 3 classes, but the criterion has 6"),
        (True, dict(score_prior=0.1), "score_prior needs class_score"),
    ],
)
def test_refused(softmax, arguments, message):
    with pytest.raises(UserError, match=message):
        long_tailed_queries(Detector(softmax), **arguments)
    with pytest.raises(UserError, match="must have one DETR-style criterion.*; it has 0"):
        long_tailed_queries(nn.Linear(2, 2))
