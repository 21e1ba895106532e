"""Differences of detections, computed by hand."""

import math

import torch

from apa_det.export import compare


def detections(*rows, masks=None):
    rows = torch.tensor(rows).reshape(-1, 6)
    outputs = {"boxes": rows[:, :4], "classes": rows[:, 4].long(), "scores": rows[:, 5]}
    if masks is not None:
        outputs["masks"] = torch.tensor(masks).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return outputs


FIRST, SECOND, LAST = (0.0, 0, 9, 9, 1, 0.9), (5.0, 5, 8, 8, 2, 0.5), (1.0, 2, 3, 4, 0, 0.1)


def test_order_does_not_matter():
    expected = detections(FIRST, SECOND, LAST)
    actual = detections(SECOND, (0.0, 0, 9, 9.004, 1, 0.90002), LAST)
    difference = compare(expected, actual)
    assert difference.is_small and difference.compared == 3
    assert abs(difference.boxes - 0.004) < 1e-6 and abs(difference.scores - 2e-5) < 1e-7


def test_large_differences():
    expected = detections(FIRST, SECOND, LAST)
    assert compare(expected, detections(FIRST, (5.0, 5, 8, 8.02, 2, 0.5), LAST)).boxes > 0.01
    assert compare(expected, detections(FIRST, (5.0, 5, 8, 8, 2, 0.5002), LAST)).scores > 1e-4
    assert compare(expected, detections(FIRST, (5.0, 5, 8, 8, 3, 0.5), LAST)).boxes == math.inf
    assert not compare(expected, detections(SECOND, LAST)).is_small
    assert not compare(detections(SECOND), expected).is_small
    assert not compare(expected, detections()).is_small
    assert not compare(detections(), expected).is_small
    assert compare(detections(), detections()).is_small


def test_masks():
    expected = detections(FIRST, SECOND, masks=[0.2, 0.7])
    assert compare(expected, detections(SECOND, FIRST, masks=[0.7, 0.2])).is_small
    assert abs(compare(expected, detections(FIRST, SECOND, masks=[0.2, 0.6])).masks - 0.1) < 1e-6


def test_last_detection_may_differ():
    other = (40.0, 40, 50, 50, 3, 0.1)
    difference = compare(detections(FIRST, LAST), detections(FIRST, other))
    assert difference.is_small and difference.compared == 1
    higher = detections(FIRST, (40.0, 40, 50, 50, 3, 0.2), LAST)
    assert not compare(detections(FIRST, LAST), higher).is_small
    assert not compare(detections(LAST), detections(other)).is_small
