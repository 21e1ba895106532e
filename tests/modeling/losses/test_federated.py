"""Compare the federated loss with detectron2's."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from apa_det import logit_apa
from apa_det.modeling.losses import SIGMOID, FederatedLoss, binary_cross_entropy, federated_classes

WEIGHTS = torch.tensor([1.0, 0.0, 3.0, 2.0, 1.0, 5.0, 0.5, 1.0])


def make(num_classes=4):
    return FederatedLoss(
        8, get_fed_loss_cls_weights=lambda: WEIGHTS, fed_loss_num_classes=num_classes
    )


@pytest.mark.parametrize("num_classes", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_against_detectron2(seed, num_classes):
    """Draws, loss and gradient are equal."""
    theirs = FastRCNNOutputLayers(
        ShapeSpec(channels=1),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=8,
        use_sigmoid_ce=True,
        use_fed_loss=True,
        get_fed_loss_cls_weights=lambda: WEIGHTS,
        fed_loss_num_classes=num_classes,
    ).sigmoid_cross_entropy_loss
    z = torch.randn(6, 9, requires_grad=True)
    gt_classes = torch.tensor([3, 8, 8, 0, 3, 8])
    results = []
    for loss in (theirs, lambda z, gt: make(num_classes)(z[:, :-1], gt, SIGMOID)):
        torch.manual_seed(seed)
        value = loss(z, gt_classes)
        results.append((value, *torch.autograd.grad(value, z)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_sampled_classes():
    def sample(num_classes):
        return federated_classes(gt_classes, WEIGHTS, num_classes).nonzero()[:, 0].tolist()

    gt_classes = torch.tensor([3, 8, 3])
    for _ in range(20):
        classes = sample(4)
        assert len(classes) == 3 and 3 in classes and 1 not in classes
    assert sample(50) == [0, 2, 3, 4, 5, 6, 7]  # detectron2 fails here: only 7 can be drawn
    assert sample(1) == [3]


@pytest.mark.parametrize("per_class", [False, True])
def test_class_scores(per_class):
    """With all classes sampled, it is cross-entropy."""
    z, gt_classes = torch.randn(5, 8), torch.tensor([1, 0, 8, 7, 8])
    lambda_ = torch.rand(1, 8) + 0.1 if per_class else torch.rand(1)
    curve = lambda_, lambda_ + 0.5
    expected = binary_cross_entropy(logit_apa(z, *curve), gt_classes)
    torch.testing.assert_close(make(50)(z, gt_classes, curve), expected)
    assert make()(z[:0], gt_classes[:0], curve) == 0
