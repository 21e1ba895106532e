"""Compare the cross-entropy of each class score, with class weights, with closed forms."""

import json

import pytest
import torch
import torch.nn.functional as F

from apa_det import apa
from apa_det.errors import MissingFileError, UserError
from apa_det.modeling.losses import (
    SIGMOID,
    CrossEntropy,
    binary_cross_entropy,
    effective_number_weights,
    inverse_weights,
    read_class_weights,
    softmax_cross_entropy,
)

GT = torch.tensor([0, 2, 3, 1, 3, 0])


def test_inverse_weights():
    """1 and 1/4, scaled to a mean of 1; zero counts are treated as 1."""
    torch.testing.assert_close(inverse_weights(torch.tensor([1, 4])), torch.tensor([1.6, 0.4]))
    root = inverse_weights(torch.tensor([0, 4]), 0.5)
    torch.testing.assert_close(root, torch.tensor([4 / 3, 2 / 3]))


def test_effective_number():
    """β = 1/2: the effective numbers of 1 and 2 samples are 1 and 3/2."""
    weights = effective_number_weights(torch.tensor([1, 2, 0]), 0.5)
    torch.testing.assert_close(weights, torch.tensor([1, 2 / 3, 1]) * 9 / 8)


def test_effective_number_limits():
    counts = torch.tensor([1, 7, 1000, 2_000_000])
    assert effective_number_weights(counts, 0.0).tolist() == [1] * 4
    torch.testing.assert_close(effective_number_weights(counts, 1e-9), torch.ones(4))
    almost_one = effective_number_weights(counts, 1 - 1e-12)
    torch.testing.assert_close(almost_one, inverse_weights(counts), rtol=1e-4, atol=0)


@pytest.mark.parametrize("curve", [None, SIGMOID, (0.0, 1.0), (0.5, 1.3)])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_each_class_score(curve, weights):
    z = torch.randn(6, 4 if curve is None else 3)
    loss = CrossEntropy(3, class_weights=weights)(z, GT, curve)
    row_weights = torch.tensor([*(weights or [1, 1, 1]), 1])[GT].double()
    if curve is None:
        losses = -z.double().log_softmax(dim=1)[range(6), GT]
    else:
        scores = apa(z.double(), *curve)
        targets = F.one_hot(GT, 4)[:, :3] == 1
        losses = -torch.where(targets, scores, 1 - scores).log().sum(dim=1)
    expected = (losses * row_weights).sum() / 6
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function,k", [(softmax_cross_entropy, 4), (binary_cross_entropy, 3)])
def test_gradients(function, k):
    z = torch.randn(6, k, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: function(z, GT, weights), z)
    torch.testing.assert_close(function(z, GT, torch.ones(6)), function(z, GT))
    assert function(z[:0], GT[:0]) == function(z[:0], GT[:0], weights[:0]) == 0


@pytest.mark.parametrize(
    "name,count,expected",
    [
        ("inverse", "image_count", [1.6, 0.4]),
        ("sqrt_inverse", "image_count", [4 / 3, 2 / 3]),
        ("effective_number", "instance_count", [1.36, 0.64]),
    ],
)
def test_weights_by_frequency(dataset, name, count, expected):
    """β = 1/2: the effective numbers of 2 and 8 instances are 3/2 and 255/128."""
    loss = CrossEntropy(2, class_weights=name, beta=0.5, count=count, datasets=dataset([1, 4]))
    loss.look_up()
    weights = loss.proposal_weights(torch.tensor([0, 1, 2]))
    if name == "effective_number":
        inverse = torch.tensor([2 / 3, 128 / 255])
        expected = inverse / inverse.mean()
    torch.testing.assert_close(weights[:2], torch.as_tensor(expected))
    assert weights[2] == 1


def test_weights_from_a_file(dataset, tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"b": 2, "a": 0.5}))
    name = dataset([1, 1], thing_classes=["a", "b"])
    loss = CrossEntropy(2, class_weights=str(file), datasets=name)
    assert loss.proposal_weights(torch.tensor([1, 0, 2])).tolist() == [2, 0.5, 1]


@pytest.mark.parametrize(
    "text,message",
    [
        ("{", "JSON"),
        ("[1, 2]", "must be a JSON object"),
        ('{"a": 1}', "has no weight for the class 'b'"),
        ('{"a": 1, "b": 1, "c": 1}', "has a weight for the unknown class 'c'"),
        ('{"a": 1, "b": -1}', ">= 0, got -1"),
        ('{"a": 1, "b": "1"}', ">= 0, got '1'"),
        ('{"a": 1, "b": NaN}', ">= 0, got nan"),
    ],
)
def test_invalid_files(tmp_path, text, message):
    file = tmp_path / "weights.json"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"weights.json.* {message}"):
        read_class_weights(str(file), ["a", "b"])


def test_invalid_weights(dataset):
    with pytest.raises(MissingFileError, match="none.json"):
        read_class_weights("none.json", ["a"])
    for weights, message in [
        ("rare", "must be one of inverse, sqrt_inverse, effective_number, .* got 'rare'"),
        ([1.0, 2.0], "must have 3 weights, one per class; got 2"),
        ([1.0, -1.0, 1.0], ">= 0, got -1.0"),
    ]:
        with pytest.raises(UserError, match=message):
            CrossEntropy(3, class_weights=weights)
    with pytest.raises(UserError, match=r"CLASS_WEIGHTS_BETA must be in \[0, 1\), got 1"):
        CrossEntropy(3, class_weights="effective_number", beta=1)
    loss = CrossEntropy(3, class_weights="inverse", datasets=dataset([1, 2]))
    with pytest.raises(UserError, match="frequencies of 2 classes for a predictor of 3"):
        loss.look_up()
