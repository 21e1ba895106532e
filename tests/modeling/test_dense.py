"""RetinaNet and FCOS with APA scores: detectron2's numbers by default, closed forms otherwise."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import nms

from apa_det import add_apa_config
from apa_det.errors import UserError
from apa_det.modeling import APAFCOS, APARetinaNet
from apa_det.modeling.calibration import fracal_binary, nor_cal, tau_norm
from apa_det.modeling.losses import CrossEntropy

K = 5
COUNTS = [2, 5, 30, 200, 800]
TRAIN = "dense_train"


@pytest.fixture(autouse=True)
def dataset():
    MetadataCatalog.get(TRAIN).set(
        class_image_count=[{"id": i, "image_count": n} for i, n in enumerate(COUNTS)],
        num_images=1000,
    )
    yield
    MetadataCatalog.remove(TRAIN)


class Pyramid(Backbone):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 8, 8), nn.Conv2d(3, 8, 16, 16)])

    def forward(self, x):
        return {f"p{i}": F.relu(conv(x)) for i, conv in enumerate(self.convs)}

    def output_shape(self):
        return {f"p{i}": ShapeSpec(channels=8, stride=s) for i, s in enumerate((8, 16))}

    @property
    def size_divisibility(self):
        return 16


@BACKBONE_REGISTRY.register()
def tiny_dense_pyramid(cfg, input_shape):
    return Pyramid()


def retinanet(architecture="APARetinaNet", **keys):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = architecture, "cpu"
    cfg.MODEL.BACKBONE.NAME = tiny_dense_pyramid.__name__
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 3, [100.0] * 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 24], [32, 48]]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p0", "p1"]
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = K, 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.DATASETS.TRAIN = (TRAIN,)
    for name, value in keys.items():
        cfg.MODEL.RETINANET[name] = value
    torch.manual_seed(0)
    return build_model(cfg)


def fcos(cls=APAFCOS, **kwargs):
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=8)] * 2
    return cls(
        backbone=Pyramid(),
        head=FCOSHead(input_shape=shapes, num_classes=K, conv_dims=[8], prior_prob=0.02),
        num_classes=K,
        test_score_thresh=0.0,
        pixel_mean=[0, 0, 0],
        pixel_std=[100, 100, 100],
        **kwargs,
    )


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    result = []
    for boxes, classes in (
        ([[4.0, 4, 30, 28], [20, 30, 60, 62], [10, 10, 50, 50]], [0, 3, 3]),
        ([[8.0, 8, 24, 40]], [4]),
        ([], []),
    ):
        instances = Instances((64, 64))
        instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        image = torch.rand(3, 64, 64, generator=generator) * 255
        result.append({"image": image, "instances": instances})
    return result


def spread(model):
    """Make the scores of the anchors differ."""
    torch.manual_seed(2)
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    nn.init.normal_(model.head.bbox_pred.weight, std=0.02)
    return model


def run(model, images):
    model.train()
    with EventStorage():
        losses = model(images)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters()]
    model.eval()
    with torch.no_grad():
        return losses, gradients, [output["instances"] for output in model(images)]


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (retinanet, lambda: retinanet("RetinaNet")),
        (fcos, lambda: fcos(FCOS)),
    ],
    ids=["retinanet", "fcos"],
)
def test_default_is_detectron2(ours, theirs, images):
    for _ in range(3):  # the first calls of detectron2's focal loss are compiled differently
        run(spread(theirs()), images)
    ours, theirs = ours(), spread(theirs())
    ours.load_state_dict(theirs.state_dict())
    (losses, gradients, found), (losses2, gradients2, found2) = (
        run(model, images) for model in (ours, theirs)
    )
    assert losses == losses2
    assert all(map(torch.equal, gradients, gradients2))
    assert ours.loss_normalizer == theirs.loss_normalizer
    for a, b in zip(found, found2, strict=True):
        assert len(a) > 10
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)


def eta(model, z):
    """Closed form in float64 of logits (..., K)."""
    if model.class_score == "gumbel":
        return torch.exp(-torch.exp(-z))
    if model.class_score == "sigmoid":
        return z.sigmoid()
    lambda_ = model.head.score.lambda_param.detach().double().flatten()
    kappa = model.head.score.kappa_param.detach().double().flatten()
    return (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)


SCORES = [
    dict(class_score="gumbel"),
    dict(class_score="apa", score_lambda_range=(0.3, 0.3), score_kappa_range=(1.4, 1.4)),
    dict(
        class_score="apa",
        score_per_class=True,
        score_lambda_range=(0.1, 2.0),
        score_kappa_range=(0.5, 1.5),
    ),
]


@pytest.mark.parametrize("score", SCORES, ids=["gumbel", "shared", "per_class"])
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_prior(kind, score):
    if kind == "retinanet":
        keys = {name.upper(): value for name, value in score.items()}
        model, prior = retinanet(PRIOR_PROB=0.03, **keys), 0.03
    else:
        model, prior = fcos(**score), 0.02
    scores = eta(model, model.head.cls_score.bias.detach().double().view(-1, K))
    torch.testing.assert_close(scores, torch.full_like(scores, prior), rtol=1e-4, atol=0)


def anchors_of(model, images):
    """Return logits (N, R, K), labels (N, R) and log-odds of the centerness, if there is any."""
    seen = {}

    def losses(anchors, logits, labels, deltas, boxes, *centerness):
        seen.update(logits=torch.cat(logits, dim=1), labels=torch.stack(labels))
        seen["centerness"] = torch.cat(centerness[0], dim=1) if centerness else None
        return {}

    model.losses = losses
    model.train()
    model(images)
    del model.losses
    return seen["logits"].detach().double(), seen["labels"], seen["centerness"]


@pytest.mark.parametrize("score", SCORES, ids=["gumbel", "shared", "per_class"])
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_focal_loss_and_scores(kind, score, images):
    if kind == "retinanet":
        model = retinanet(**{name.upper(): value for name, value in score.items()})
    else:
        model = fcos(**score)
    spread(model)
    z, labels, centerness = anchors_of(model, images)
    p, target = eta(model, z), F.one_hot(labels.clamp(min=0), K + 1)[..., :K]
    likelihood = torch.where(target == 1, p, 1 - p)
    alpha = torch.where(target == 1, 0.25, 0.75)
    focal = -alpha * (1 - likelihood) ** 2 * likelihood.log()
    number = int(((labels >= 0) & (labels < K)).sum())
    normalizer = 0.9 * (100 if kind == "retinanet" else 300) + 0.1 * number
    losses, gradients, (found, *_) = run(model, images)
    loss = losses["loss_cls" if kind == "retinanet" else "loss_fcos_cls"]
    expected = focal[labels >= 0].sum() / normalizer
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-4, atol=0)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    if centerness is not None:
        p = (p * centerness.detach().double().sigmoid()).sqrt()
    for score, label in zip(found.scores.tolist(), found.pred_classes.tolist(), strict=True):
        assert (p[0, :, label] - score).abs().min() < 1e-5
    assert found.scores[0] > p[0].median()


@pytest.mark.parametrize(
    "loss",
    ["CrossEntropy", "BalancedSoftmax", "DropLoss", "EqualizationLoss", "EqualizationLossV2"]
    + ["FederatedLoss", "FocalLoss"],
)
def test_class_losses(loss, images):
    """The loss is that of the box head over all labeled anchors, by the keys of RetinaNet."""
    keys = dict(BALANCED_SOFTMAX_TAU=0.7, FED_LOSS_NUM_CLASSES=K + 1, FOCAL_LOSS_GAMMA=1.5)
    keys |= dict(DROP_LOSS_THRESHOLD=0.01, EQUALIZATION_LOSS_THRESHOLD=0.01)
    model = spread(
        retinanet(CLASS_LOSS=loss, CLASS_SCORE="apa", SCORE_LAMBDA_RANGE=(0.5, 0.5), **keys)
    )
    z, labels, _ = anchors_of(model, images)
    torch.manual_seed(3)
    losses, gradients, _ = run(model, images)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    z, labels = z[labels >= 0], labels[labels >= 0]
    p, target = eta(model, z), F.one_hot(labels, K + 1)[:, :K].double()
    normalizer = 90 + 0.1 * int((labels < K).sum())
    terms = F.binary_cross_entropy(p, target, reduction="none")
    if loss == "BalancedSoftmax":
        prior = torch.tensor(COUNTS).double()
        x = p.logit() + 0.7 * (prior / prior.mean()).log()
        terms = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    elif loss == "FocalLoss":
        likelihood = torch.where(target == 1, p, 1 - p)
        alpha = torch.where(target == 1, 0.25, 0.75)
        terms = terms * alpha * (1 - likelihood) ** 1.5
    elif loss == "EqualizationLoss":
        rare = torch.tensor(COUNTS) < 10
        terms = terms * ~((labels < K)[:, None] & rare & (target == 0))
    elif loss == "DropLoss":  # random
        rare = torch.tensor(COUNTS) < 10
        kept = terms * ~(rare & (target == 0))
        assert kept.sum() / normalizer < losses["loss_cls"] < terms.sum() / normalizer
        return
    actual = losses["loss_cls"].detach().double()
    torch.testing.assert_close(actual, terms.sum() / normalizer, rtol=1e-4, atol=0)
    if loss == "EqualizationLossV2":  # its statistics are part of checkpoints
        assert model.state_dict()["head.class_loss.positive_gradients"].sum() > 0


def test_class_weights(images):
    weights = [0.0, 1, 2, 3, 4]
    model = spread(retinanet(CLASS_WEIGHTS=weights))
    z, labels, _ = anchors_of(model, images)
    losses, *_ = run(model, images)
    z, labels = z[labels >= 0], labels[labels >= 0]
    p, target = z.sigmoid(), F.one_hot(labels, K + 1)[:, :K]
    likelihood = torch.where(target == 1, p, 1 - p)
    focal = -torch.where(target == 1, 0.25, 0.75) * (1 - likelihood) ** 2 * likelihood.log()
    focal = focal.sum(dim=1) * torch.tensor([*weights, 1.0])[labels]
    expected = focal.sum() / (90 + 0.1 * int((labels < K).sum()))
    torch.testing.assert_close(losses["loss_cls"].detach().double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["NorCal", "FRACAL", "TauNorm"])
def test_calibration_is_before_the_threshold(method, images, monkeypatch):
    """Expected detections from calibrated closed-form scores of all anchors."""
    counts = torch.tensor(COUNTS)
    values = torch.stack([counts / 1000, torch.tensor([1.0, 1.2, 1.5, 1.8, 2.0])], dim=1)
    monkeypatch.setattr(
        "apa_det.modeling.calibration.shares_and_dimensions", lambda datasets: values
    )
    model = spread(retinanet(CLASS_SCORE="gumbel", CALIBRATION=method, CALIBRATION_STRENGTH=0.4))
    z, *_ = anchors_of(model, images[:1])
    z, conv = z[0], model.head.cls_score
    if method == "TauNorm":  # one row of the classifier per class of each anchor
        weight, bias = conv.weight.detach().flatten(1), conv.bias.detach()
        rows = tau_norm(z.float().view(-1, len(bias)), weight, bias, len(bias), 0.4)
        x = eta(model, rows.double().view(-1, K)).logit()
    else:
        x = F.pad(eta(model, z).logit(), (0, 1))
        x = (
            nor_cal(x, counts, 0.4)
            if method == "NorCal"
            else fracal_binary(x, *values.unbind(1), 0.4)
        )
        x = x[:, :K]
    p = x.double().sigmoid()
    threshold = p.flatten().sort(descending=True).values[40].item()
    model.test_score_thresh = threshold
    model.test_nms_thresh = 1.0
    model.eval()
    with torch.no_grad():
        (found,) = model(images[:1])
    expected = p[p > threshold * (1 - 1e-5)]
    scores = found["instances"].scores.double()
    assert 30 <= len(scores) <= 41  # boxes that are empty in the image are dropped
    assert all((expected - score).abs().min() < 1e-5 for score in scores)


def test_thresholds_by_class_come_before_the_best_anchors(images):
    """One class would fill the top k of a level; it has a high threshold, so others remain."""
    model = spread(retinanet())
    model.postprocessing.score_thresh_per_group = "unused"
    low = torch.tensor(0.011)
    model.postprocessing._thresholds = 0.0, torch.tensor([low, low, low, low, 1.0])
    with torch.no_grad():
        model.head.cls_score.bias.view(-1, K)[:, 4] += 3
    model.test_topk_candidates, model.test_nms_thresh = 30, 1.0
    z, *_ = anchors_of(model, images[:1])
    model.eval()
    with torch.no_grad():
        (found,) = model(images[:1])
    p = z[0].sigmoid()
    assert (p[:, 4] > p[:, :4].max()).sum() > 60
    classes = found["instances"].pred_classes
    assert len(classes) > 30 and 4 not in classes.tolist()
    assert found["instances"].scores.min() > low


def test_class_agnostic_nms(images, monkeypatch):
    model = spread(retinanet()).eval()
    model.max_detections_per_image = 10000
    name = "detectron2.modeling.meta_arch.dense_detector.detector_postprocess"
    monkeypatch.setattr(name, lambda instances, height, width: instances)  # boxes are not clipped
    found = []
    for agnostic, threshold in ((False, 1.0), (True, 0.5)):
        model.postprocessing.class_agnostic_nms, model.test_nms_thresh = agnostic, threshold
        with torch.no_grad():
            found.append(model(images[:1])[0]["instances"])
    everything, found = found
    kept = nms(everything.pred_boxes.tensor, everything.scores, 0.5)
    assert 0 < len(kept) < len(everything)
    assert torch.equal(found.pred_boxes.tensor, everything.pred_boxes.tensor[kept])
    assert torch.equal(found.pred_classes, everything.pred_classes[kept])


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(CLASS_LOSS="SeesawLoss"), "RETINANET.CLASS_LOSS SeesawLoss needs softmax, but dense"),
        (dict(CLASS_LOSS="BalancedGroupSoftmax"), "BalancedGroupSoftmax needs outputs of its own"),
        (dict(CLASS_LOSS="Focal"), "MODEL.RETINANET.CLASS_LOSS must be one of"),
        (dict(CLASS_SCORE="softmax"), "RETINANET.CLASS_SCORE must be one of sigmoid, gumbel, apa"),
        (dict(CLASS_LOSS="DropLoss", CLASS_WEIGHTS="inverse"), "RETINANET.CLASS_WEIGHTS is supp"),
        (dict(CALIBRATION_STRENGTH=1.0), "no effect without MODEL.RETINANET.CALIBRATION"),
        (dict(CLASS_SCORE="apa", SCORE_KAPPA_RANGE=[0, 1]), "RETINANET.SCORE_KAPPA_RANGE must be"),
        (dict(LOGIT_CLAMP=-1), "MODEL.RETINANET.LOGIT_CLAMP must be >= 0, got -1"),
    ],
)
def test_refused(keys, message):
    with pytest.raises(UserError, match=message):
        retinanet(**keys)
    with pytest.raises(UserError, match="has 4 classes, but the detector has 5"):
        fcos(class_loss=CrossEntropy(4))


def test_type():
    assert isinstance(retinanet(), APARetinaNet)
