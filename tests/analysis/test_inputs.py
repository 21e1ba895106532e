"""Samples of layer inputs."""

import numpy as np
import pytest
import torch
from torch import nn

from apa_det import AGLU, APA, inject
from apa_det.analysis import ACTIVATION, GATE, InputSample, InputSampler, eta_parameters
from apa_det.layers import EvalBatchNorm2d, Swish
from apa_det.modeling import APABottleneckBlock


def make_sample(size, eta=None, seed=0):
    return InputSample("x", GATE, "APA", eta, size=size, rng=np.random.default_rng(seed))


def test_all_values_are_equally_likely():
    """In every part of the stream: 400 samples of 50 out of 1,000 values, in uneven batches."""
    counts = np.zeros(1000)
    for seed in range(400):
        sample = make_sample(50, seed=seed)
        for part in torch.arange(1000.0).split([3, 497, 1, 399, 100]):
            sample.add(part)
        assert len(sample.values) == len(set(sample.values.tolist())) == 50
        counts[sample.values.astype(int)] += 1
    assert sample.seen == 1000
    for part in np.split(counts, [100, 500, 900]):  # mean 20 per value, standard deviation 4.4
        assert part.mean() == pytest.approx(20, abs=4 * 4.4 / len(part) ** 0.5)


def test_short_stream_is_kept_completely():
    sample = make_sample(10)
    for z in (torch.tensor([[1.0, 2.0]]), torch.empty(0, 2), torch.tensor([[np.nan, 4.0]])):
        sample.add(z)
    assert sorted(sample.values) == [1, 2, 4] and sample.seen == 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_and_signs(layout):
    """Each value keeps its channel; values of channels with κ < 0 are negated."""
    eta = np.ones(3), np.array([1.0, -2.0, 0.5])
    z = torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 4, 5) + 1
    sample = make_sample(120, eta)
    sample.add(z.contiguous(memory_format=layout))
    assert np.bincount(sample.channels).tolist() == [40] * 3
    signed = np.array([1.0, -2.0, 3.0])
    np.testing.assert_array_equal(sample.values, signed[sample.channels])


def test_channels_of_the_last_dimension():
    """Injected per-channel layers after a Linear have the channels there."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    nn.init.zeros_(model[0].weight)
    model[0].bias.data = torch.tensor([1.0, 2.0, 3.0])
    inject(model, parameters="per_channel", example=torch.zeros(2, 4, 2))
    model[1].kappa_param.data = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    sampler = InputSampler(model)
    with sampler.sampling():
        model(torch.zeros(2, 4, 2))
    (sample,) = sampler.samples
    assert np.bincount(sample.channels).tolist() == [8] * 3
    np.testing.assert_array_equal(sample.values, np.array([1.0, -2.0, 3.0])[sample.channels])


def test_eta_parameters():
    gate = APA(3, lambda_range=(0, 0), kappa_range=(-1, -1), lambda_min=0.25)
    swish = Swish()
    swish.beta.data.fill_(2.0)
    for module, expected in (
        (gate, ([0.25] * 3, [-1.0] * 3)),
        (swish, ([1.0], [2.0])),
        (nn.Sigmoid(), ([1.0], [1.0])),
    ):
        assert tuple(values.tolist() for values in eta_parameters(module)) == expected
    assert eta_parameters(nn.ReLU()) is None


def test_layers_of_a_fused_block():
    """Fused layers are sampled unfused, and fused again afterwards."""
    torch.manual_seed(0)
    block = APABottleneckBlock(
        4, 8, bottleneck_channels=6, norm=EvalBatchNorm2d, activation="aglu", gate="se"
    ).eval()
    x = torch.randn(1, 4, 6, 6)
    sampler = InputSampler(block)
    with torch.no_grad():
        expected = block(x)
        with sampler.sampling():
            sampled = block(x)
        torch.testing.assert_close(sampled, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(block(x), expected)
        first = block.conv1(x)
    kinds = {sample.name: sample.kind for sample in sampler.samples}
    assert list(kinds) == ["act1", "act2", "gate.activation", "act3"]  # in execution order
    assert list(kinds.values()) == [ACTIVATION, ACTIVATION, GATE, ACTIVATION]
    act1 = sampler.samples[0]
    np.testing.assert_allclose(np.sort(act1.values), first.flatten().sort().values, rtol=1e-6)
    assert not any(m._forward_pre_hooks for m in block.modules())


def test_in_place_activations_are_sampled_before_the_change():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3), nn.Sigmoid())
    sampler = InputSampler(model)
    z = torch.tensor([[-1.0, 2.0, -3.0]])
    with sampler.sampling():
        model(z.clone())
    relu, sigmoid = sampler.samples
    assert sorted(relu.values) == [-3, -1, 2] and relu.layer_type == "ReLU" and relu.eta is None
    assert sigmoid.kind == GATE


def test_unused_layer_has_no_sample():
    model = nn.ModuleDict({"used": AGLU(), "unused": AGLU()})
    sampler = InputSampler(model)
    with sampler.sampling():
        model["used"](torch.randn(2, 2))
    assert [sample.name for sample in sampler.samples] == ["used"]
