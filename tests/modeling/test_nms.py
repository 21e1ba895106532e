"""Soft-NMS: a hand-worked case, and a box-by-box loop in float64."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from apa_det.errors import UserError
from apa_det.modeling import soft_nms


def loop(boxes, scores, classes, method, threshold, sigma):
    """Select and rescore one box at a time."""
    scores, left, result = scores.double(), set(range(len(scores))), []
    ious = box_iou(boxes.double(), boxes.double())
    while left:
        i = max(left, key=lambda j: scores[j].item())
        left.remove(i)
        result.append((i, scores[i].item()))
        for j in left:
            iou = ious[i, j].item() if classes[i] == classes[j] else 0.0
            linear = 1 - iou if iou >= threshold else 1.0
            scores[j] *= math.exp(-(iou**2) / sigma) if method == "gaussian" else linear
    return result


def test_by_hand():
    """Two boxes of IoU 1/3 and a third apart; a box of another class on the first."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 2, 2]])
    scores, classes = torch.tensor([0.9, 0.6, 0.5, 0.3]), torch.tensor([4, 4, 4, 7])
    kept, linear = soft_nms(boxes, scores, classes, "linear", iou_threshold=1 / 3)
    assert kept.tolist() == [0, 2, 1, 3]
    torch.testing.assert_close(linear, torch.tensor([0.9, 0.5, 0.6 * 2 / 3, 0.3]))
    _, unchanged = soft_nms(boxes, scores, classes, "linear", iou_threshold=0.34)
    assert torch.equal(unchanged, scores)
    kept, gaussian = soft_nms(boxes, scores, classes, "gaussian", sigma=0.2)
    assert kept.tolist() == [0, 2, 1, 3]
    torch.testing.assert_close(gaussian[2].item(), 0.6 * math.exp(-1 / 9 / 0.2))
    kept, _ = soft_nms(boxes, scores, classes * 0, "linear", iou_threshold=0.3)
    assert kept.tolist() == [0, 2, 1]  # the last one, with IoU 1, has the score 0


@pytest.mark.parametrize("num_classes", [1, 5, 60])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("limit", [-1, 0, 1, 12])
def test_loop(num_classes, method, limit):
    torch.manual_seed(num_classes)
    corners = torch.rand(70, 2) * 60
    boxes = torch.cat([corners, corners + 5 + torch.rand(70, 2) * 60], dim=1)
    scores, classes = torch.rand(70), torch.randint(num_classes, (70,))
    kept, values = soft_nms(boxes, scores, classes, method, 0.3, 0.5, limit)
    expected = loop(boxes, scores, classes, method, 0.3, 0.5)[: limit if limit >= 0 else None]
    assert kept.tolist() == [i for i, _ in expected]
    exact = torch.tensor([value for _, value in expected], dtype=torch.float64)
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-9)


def test_trace_keeps_the_loop():
    def make(n):
        corners = torch.rand(n, 2) * 30
        return torch.cat([corners, corners + 20], dim=1), torch.rand(n), torch.randint(3, (n,))

    def select(*inputs):
        return soft_nms(*inputs, "gaussian", max_detections=10)

    torch.manual_seed(0)
    traced = torch.jit.trace(select, make(20), check_trace=False)
    for n in (0, 1, 60):
        inputs = make(n)
        for mine, theirs in zip(select(*inputs), traced(*inputs), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_errors():
    with pytest.raises(UserError, match="must be linear or gaussian; got 'hard'"):
        soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), "hard")
