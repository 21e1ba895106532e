"""Matching as in mmdetection, against literal restatements of its rules."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from apa_det.errors import UserError
from apa_det.modeling import LowQualityMatcher
from apa_det.modeling.matching import jitter_repeated_boxes, jitter_targets, restore_boxes


def literal(iou, low, high, min_quality):
    """1. negatives; 2. positives; 3. for each ground truth in order, all of its best boxes."""
    labels = [-1] * iou.shape[1]
    matches = [0] * iou.shape[1]
    for j in range(iou.shape[1]):
        column = iou[:, j].tolist()
        matches[j] = column.index(max(column))
        if max(column) < low:
            labels[j] = 0
        if max(column) >= high:
            labels[j] = 1
    for i in range(iou.shape[0]):
        best = iou[i].max()
        for j in range(iou.shape[1]):
            if best >= min_quality and iou[i, j] == best:
                labels[j], matches[j] = 1, i
    return matches, labels


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 8))
def test_low_quality_matches(data, truths, boxes):
    values = st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875])  # with ties
    iou = torch.tensor(
        data.draw(st.lists(values, min_size=truths * boxes, max_size=truths * boxes))
    )
    iou = iou.view(truths, boxes)
    matches, labels = LowQualityMatcher([0.25, 0.75], [0, -1, 1], min_quality=0.25)(iou)
    expected = literal(iou, 0.25, 0.75, 0.25)
    assert labels.tolist() == expected[1]
    assert [m for m, label in zip(matches.tolist(), labels, strict=True) if label == 1] == [
        m for m, label in zip(*expected, strict=True) if label == 1
    ]


def test_low_quality_matches_by_hand():
    """Truth 1 takes box 0, although truth 0 overlaps more. Truth 2 overlaps too little."""
    iou = torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.0, 0.4]])
    matches, labels = LowQualityMatcher([0.5], [0, 1], min_quality=0.5)(iou)
    assert (matches[0], labels.tolist()) == (1, [1, 0])
    theirs, _ = Matcher([0.5], [0, 1], allow_low_quality_matches=True)(iou)
    assert theirs[0] == 0


def test_no_ground_truth():
    for shape in ((0, 3), (3, 0)):
        matches, labels = LowQualityMatcher([0.5], [0, 1], min_quality=0.5)(torch.zeros(shape))
        assert len(matches) == len(labels) == shape[1] and not labels.any()


@pytest.mark.parametrize("value", [0, -0.1, 1.5])
def test_min_quality_out_of_range(value):
    with pytest.raises(UserError, match=r"LOW_QUALITY_IOU .* must be in \(0, 1\]"):
        LowQualityMatcher([0.5], [0, 1], min_quality=value)


def perturb(boxes, min_iou=0.97, amount=0.01, counter=0):
    """The published rule, recursive."""
    result = boxes * torch.empty(len(boxes), 4).uniform_(1 - amount, 1 + amount)
    sides = result[:, 2:] - result[:, :2]
    valid = (sides > 0).all() and (box_iou(boxes[:1], result) >= min_iou).all()
    if not valid and counter < 5:
        amount = max(amount - counter * 0.001, 1e-3)
        return perturb(boxes, amount=amount, counter=counter + 1)
    return result


@pytest.mark.parametrize("side", [3.0, 40.0, 300.0])
def test_jitter(side):
    """Large boxes satisfy the first draw; small ones far from the origin need all of them."""
    a, b = [200.0, 300, 200 + side, 310 + side], [5.0, 6, 90, 100]
    c = [10.0, 20, 110, 140]
    boxes = torch.tensor([a, b, a, c, a, c])
    torch.manual_seed(0)
    actual = jitter_repeated_boxes(boxes, 0.01)
    torch.manual_seed(0)
    expected = boxes.clone()  # groups are drawn in the order of their coordinates
    expected[[3, 5]] = perturb(boxes[[3, 5]], min_iou=0.7)
    expected[[0, 2, 4]] = perturb(boxes[[0, 2, 4]], min_iou=0.7)
    assert torch.equal(actual, expected)
    assert torch.equal(actual[1], boxes[1]) and len(actual.unique(dim=0)) == 6
    assert boxes.tolist() == [a, b, a, c, a, c]


def test_given_boxes_are_restored():
    boxes = torch.tensor([[10.0, 20, 110, 140]] * 2)
    target = Instances((200, 200), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    (jittered,) = jitter_targets([target], 0.01)
    assert not torch.equal(jittered.gt_boxes.tensor, boxes)
    (restored,) = restore_boxes([jittered])
    assert restored.get_fields().keys() == target.get_fields().keys()
    assert torch.equal(restored.gt_boxes.tensor, boxes)
