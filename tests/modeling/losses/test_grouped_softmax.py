"""Compare balanced group softmax with slow reimplementations and the one-group limit."""

import pytest
import torch
from torch.nn import functional as F

from apa_det.errors import UserError
from apa_det.modeling.losses import (
    BalancedGroupSoftmax,
    group_softmax_loss,
    group_softmax_probabilities,
)

GROUPS = torch.tensor([0, 2, 0, 1, 2])  # outputs: 5 classes, 3 others, foreground, background


def parts(row):
    """Members and outputs of each group, "others" last; outputs of foreground and background."""
    members = [(GROUPS == g).nonzero()[:, 0].tolist() for g in range(3)]
    return members, [row[[*m, 5 + g]] for g, m in enumerate(members)], row[8:]


@pytest.mark.parametrize("others_ratio", [100.0, 0.0])
def test_loss(others_ratio):
    """With all others, or none."""
    z = torch.randn(12, 10, dtype=torch.float64, requires_grad=True)
    gt_classes = torch.tensor([0, 5, 5, 3, 2, 5, 0, 5, 3, 5, 5, 5])  # no label of group 2
    losses = [[], [], [], []]
    for row, label in zip(z, gt_classes.tolist(), strict=True):
        members, outputs, foreground = parts(row)
        losses[3].append(-foreground.log_softmax(0)[int(label == 5)])
        for g in range(3):
            if label in members[g]:
                losses[g].append(-outputs[g].log_softmax(0)[members[g].index(label)])
            elif others_ratio and g != 2:
                losses[g].append(-outputs[g].log_softmax(0)[-1])
    expected = sum(torch.stack(group).mean() for group in losses if group)
    loss = group_softmax_loss(z, gt_classes, GROUPS, others_ratio)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (loss, expected)))
    assert torch.autograd.gradcheck(
        lambda z: group_softmax_loss(z, gt_classes, GROUPS, others_ratio), z
    )


def test_others_are_sampled():
    """6 of 12 others are sampled for 3 proposals, differently each time."""
    gt_classes = torch.tensor([3] * 3 + [5] * 12)
    seen = []
    for _ in range(20):
        z = torch.zeros(15, 10, requires_grad=True)
        group_softmax_loss(z, gt_classes, GROUPS, 2.0).backward()
        used = z.grad[:, 6] != 0  # "others" of group 1
        assert used[:3].all() and used[3:].sum() == 6
        assert not z.grad[:, [0, 1, 2, 4, 5, 7]].any()
        seen.append(used)
    assert len({tuple(used.tolist()) for used in seen}) > 5


def test_probabilities():
    z = torch.randn(7, 10)
    scores = group_softmax_probabilities(z, GROUPS)
    for row, actual in zip(z, scores, strict=True):
        members, outputs, foreground = parts(row)
        share, background = foreground.softmax(0)
        expected = torch.empty(6)
        for group, values in zip(members, outputs, strict=True):
            expected[group] = values.softmax(0)[:-1] * share
        expected[5] = background
        torch.testing.assert_close(actual, expected)


def test_one_group():
    """With one group and negligible "others", it is foreground or background times a softmax."""
    z = torch.randn(6, 7)
    z[:, 4] = -1e4
    one = torch.zeros(4, dtype=torch.int64)
    scores = group_softmax_probabilities(z, one)
    is_foreground = z[:, 5:].softmax(dim=1)
    torch.testing.assert_close(scores[:, :-1], z[:, :4].softmax(dim=1) * is_foreground[:, :1])
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(6))
    gt_classes = torch.tensor([0, 4, 3, 4, 1, 1])
    expected = -is_foreground.log()[range(6), (gt_classes == 4).long()].mean()
    own = gt_classes[gt_classes < 4]
    expected = expected + F.cross_entropy(z[gt_classes < 4][:, :4], own)
    torch.testing.assert_close(group_softmax_loss(z, gt_classes, one, 0.0), expected)


def test_no_proposals_and_no_foreground():
    assert group_softmax_loss(torch.zeros(0, 10), torch.zeros(0).long(), GROUPS) == 0
    loss = group_softmax_loss(torch.zeros(3, 10), torch.full((3,), 5), GROUPS)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


@pytest.mark.parametrize("count,groups", [("image_count", [0, 0, 1, 1, 2]), ("instance_count", 0)])
def test_groups(dataset, count, groups):
    """Boundaries of 10 and 100; there are twice as many instances as images."""
    loss = BalancedGroupSoftmax(
        5, datasets=dataset([0, 9, 10, 99, 100]), boundaries=[10, 100], count=count
    )
    assert loss.num_outputs == 10
    loss(torch.zeros(2, 10), torch.tensor([0, 5]))
    assert loss.groups.tolist() == (groups or [0, 1, 1, 2, 2])
    assert loss.state_dict()["groups"].tolist() == loss.groups.tolist()
    with pytest.raises(UserError, match=r"must be strictly increasing, got \[100, 10\]"):
        BalancedGroupSoftmax(5, datasets=(), boundaries=[100, 10])
