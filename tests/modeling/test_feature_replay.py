"""Replay of features: the memory and SMOTE on hand-worked cases, and the loss and its gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det.errors import UserError
from apa_det.modeling import APAFastRCNNOutputLayers, FeatureReplay
from apa_det.modeling.feature_memory import FeatureMemory, draw_features

from .test_box_predictor import SHAPE, K, make, make_proposals

NAME = "replay_test"
MetadataCatalog.get(NAME).set(
    thing_classes=list("abcde"),
    class_image_count=[{"id": i + 1, "image_count": n} for i, n in enumerate((500, 7, 90, 200, 0))],
)


def points(*values):
    return torch.tensor(values)[:, None].float()


def filled():
    """A memory of the classes 1 and 3 with 3 features each: class 1 has got 4 features, 3 one."""
    memory = FeatureMemory(torch.tensor([1, 3]), 3)
    memory.push(points(7, 1, 5), torch.tensor([1, 1, 3]))
    memory.push(points(2, 10), torch.tensor([1, 1]))
    return memory


def test_first_in_first_out():
    memory = filled()
    assert memory.features[..., 0].tolist() == [[10, 1, 2], [5, 0, 0]]
    assert memory.counts.tolist() == [4, 1] and memory.sizes.tolist() == [3, 1]
    memory.push(points(), torch.tensor([], dtype=torch.int64))
    memory.push(points(4, 6), torch.tensor([1, 3]))
    assert memory.features[..., 0].tolist() == [[10, 4, 2], [5, 6, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_restores_every_slot(dtype):
    memory = FeatureMemory(torch.tensor([1, 3]), 3)
    assert memory.state_dict() == {}
    memory.push(torch.randn(6, 8, dtype=dtype), torch.tensor([1, 1, 3, 1, 1, 1]))
    state = copy.deepcopy(memory.state_dict())
    assert len(state["features"]) == 4  # the empty slots are not saved
    other = FeatureMemory(torch.tensor([1, 3]), 3)
    other.load_state_dict(state, "cpu")
    for either in (memory, other):
        either.push(torch.ones(2, 8), torch.tensor([3, 1]))
    assert torch.equal(memory.features, other.features) and other.features.dtype == dtype
    assert torch.equal(memory.counts, other.counts)
    for key, value, message in (
        ("classes", torch.tensor([1, 2]), "other ones"),
        ("counts", torch.tensor([4, 4]), "6 slots are filled"),
        ("counts", torch.tensor([-1, 4]), "integers >= 0"),
        ("features", state["features"] * torch.inf, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict({**state, key: value}, "cpu")


def test_smote_points_are_between_nearest_neighbors():
    """Features 10, 1, 2 of class 1: the neighbor of 10 is 2, those of 1 and 2 each other."""
    torch.manual_seed(0)
    drawn, labels = draw_features(filled(), 4000, neighbors=1)
    drawn = drawn[:, 0]
    assert (labels == 3).float().mean() == pytest.approx(0.5, abs=0.03)  # the classes alternate
    assert (drawn[labels == 3] == 5).all()  # it has no neighbor
    drawn = drawn[labels == 1]
    assert drawn.min() >= 1 and drawn.max() <= 10
    # 10 − 8u of one third; 1 + u and 2 − u of the others
    assert (drawn > 2).float().mean() == pytest.approx(1 / 3, abs=0.04)
    assert drawn[drawn > 2].mean() == pytest.approx(6, abs=0.3)
    assert drawn[drawn < 2].mean() == pytest.approx(1.5, abs=0.05)

    # with 2 neighbors or more, of 10: 1 or 2; of 1: 2 or 10; of 2: 1 or 10
    above = (17 / 18 + 4 / 9 + 1 / 2) / 3
    for neighbors in (2, 50):
        drawn, labels = draw_features(filled(), 4000, neighbors)
        assert (drawn[labels == 1] > 2).float().mean() == pytest.approx(above, abs=0.04)


def test_smote_in_many_dimensions():
    """Each point lies on a segment from a feature to one of its 3 nearest, found in NumPy."""
    torch.manual_seed(0)
    features = torch.randn(6, 16)
    memory = FeatureMemory(torch.tensor([2]), 8)
    memory.push(features, torch.full((6,), 2))
    drawn, _ = draw_features(memory, 200, neighbors=3)
    x = features.double().numpy()
    distances = ((x[:, None] - x) ** 2).sum(-1)
    segments = {(i, j) for i in range(6) for j in distances[i].argsort()[1:4]}
    seen = set()
    for point in drawn.double().numpy():
        ends = []
        for i, j in segments:
            u = (point - x[i]) @ (x[j] - x[i]) / distances[i, j]
            if abs(x[i] + u * (x[j] - x[i]) - point).max() < 1e-5 and -1e-6 < u < 1:
                ends.append((i, j))
        assert ends
        seen |= {*ends}
    assert seen == segments


def test_without_neighbors():
    torch.manual_seed(0)
    drawn, labels = draw_features(filled(), 500, neighbors=0)
    assert {*drawn[labels == 1, 0].tolist()} == {10, 1, 2}
    assert draw_features(FeatureMemory(torch.tensor([1]), 3), 5, 1) is None
    single = FeatureMemory(torch.tensor([1]), 1)
    single.push(points(8), torch.tensor([1]))
    assert draw_features(single, 2, neighbors=5)[0].tolist() == [[8], [8]]


def replay(**kwargs):
    made = FeatureReplay(K, datasets=NAME, **kwargs)
    made.look_up()
    made.is_recording = True
    return made


def test_scarce_classes():
    for kwargs, classes in (
        ({}, [1, 2, 4]),
        ({"groups": ["r"]}, [1, 4]),
        ({"max_count": 200}, [1, 2, 3, 4]),
    ):
        assert replay(**kwargs).memory.classes.tolist() == classes
    with pytest.raises(UserError, match=r"REPLAY.SHARE has no effect: no class .* groups \(none\)"):
        replay(groups=())
    with pytest.raises(UserError, match=r"REPLAY.GROUPS must be of r, c and f; got 'rare'"):
        replay(groups=["rare"])
    with pytest.raises(UserError, match=r"REPLAY.MEMORY must be >= 1, got 0"):
        replay(memory=0)
    with pytest.raises(UserError, match="The replay has 5 classes, but the predictor has 4"):
        transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        APAFastRCNNOutputLayers(SHAPE, box2box_transform=transform, num_classes=4, replay=replay())


def test_records_the_best_proposal_of_each_scarce_object():
    module = replay(share=1.0)
    first, second = Instances((50, 50)), Instances((50, 50))
    first.proposal_boxes = Boxes([[0, 0, 9, 9], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    first.gt_boxes = Boxes([[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    first.gt_classes = torch.tensor([1, 1, 0, 2])  # 0 is frequent; 2 has the same box as 1
    second.proposal_boxes = Boxes([[0, 0, 10, 10], [0, 0, 10, 10]])
    second.gt_classes = torch.tensor([K, K])
    with EventStorage() as storage:
        features = torch.arange(6.0)[:, None].repeat(1, 2).requires_grad_()
        assert module.extend(features) is features  # the memory is empty
        module.record([first, second])
        recorded, labels = module.take_recorded()
        assert recorded[:, 0].tolist() == [1, 3] and labels.tolist() == [1, 2]
        assert not recorded.requires_grad and module.take_recorded() is None
        module.extend(torch.full((6, 2), torch.inf))
        module.record([first, second])
        assert len(module.take_recorded()[0]) == 0  # not finite
        module.memory.push(recorded, labels)
        module.extend(features)
        assert storage.latest()["replay/num_replayed"][0] == 6
        assert storage.latest()["replay/memory_fill"][0] == pytest.approx(2 / 60)


@pytest.mark.parametrize("score", ["softmax", "gumbel"])
def test_class_loss_and_gradients(score):
    """The class loss is the mean over proposals and replayed features, from torch alone."""
    module = replay(share=0.5, neighbors=0, memory=1)
    plain, predictor = make(class_score=score), make(class_score=score, replay=module)
    predictor.load_state_dict(plain.state_dict())  # the replay has no state
    stored = torch.randn(1, 16)
    module.memory.push(stored, torch.tensor([2]))
    x, classes = torch.randn(4, 16), [0, 1, 5, 5]
    proposals, inputs = make_proposals(classes), [x.clone().requires_grad_() for _ in range(2)]
    losses, deltas = [], []
    for box_predictor, features in zip((plain, predictor), inputs, strict=True):
        with EventStorage():
            logits, boxes = box_predictor(features)
            losses.append(box_predictor.losses((logits, boxes), proposals))
            sum(losses[-1].values()).backward()
            deltas.append(boxes)
    assert len(logits) == 6 and torch.equal(*deltas)
    assert losses[0]["loss_box_reg"] == losses[1]["loss_box_reg"]

    weight = plain.cls_score.weight.detach().clone().requires_grad_()
    z = torch.cat([x, stored, stored]) @ weight.T + plain.cls_score.bias.detach()
    labels = torch.tensor([*classes, 2, 2])
    if score == "softmax":
        expected = F.cross_entropy(z, labels)
    else:
        eta, targets = torch.exp(-torch.exp(-z)), F.one_hot(labels, K + 1)[:, :K]
        expected = -torch.where(targets == 1, eta, 1 - eta).log().sum() / 6
    torch.testing.assert_close(losses[1]["loss_cls"], expected, rtol=1e-4, atol=1e-5)
    expected.backward()
    torch.testing.assert_close(predictor.cls_score.weight.grad, weight.grad, rtol=1e-3, atol=1e-5)
    assert torch.equal(predictor.bbox_pred.weight.grad, plain.bbox_pred.weight.grad)
    assert len(module.take_recorded()[0]) == 1


def test_off():
    """Before START_ITER, with a share of 0, without a trainer or in inference: detectron2's."""
    x = torch.randn(4, 16)
    for kwargs in ({"start_iter": 3, "share": 1.0}, {"share": 0.0}):
        predictor = make(replay=replay(**kwargs))
        predictor.replay.memory.push(torch.randn(2, 16), torch.tensor([1, 2]))
        for iteration in (0, 2, 3):
            with EventStorage(iteration):
                active = kwargs["share"] and iteration >= kwargs["start_iter"]
                assert len(predictor(x)[0]) == (8 if active else 4)
                predictor.losses(predictor(x), make_proposals([1, 2, 5, 5]))
                assert (predictor.replay.take_recorded() is not None) == bool(active)
    predictor.replay.share = 1.0
    assert len(predictor.eval()(x)[0]) == 4
    predictor.train().replay.is_recording = False
    with EventStorage():
        assert len(predictor(x)[0]) == 4
