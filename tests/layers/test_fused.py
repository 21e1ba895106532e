"""Fused layers against the separate modules."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import nn

from apa_det import AGLU
from apa_det.layers import (
    CBAMGate,
    EvalBatchNorm2d,
    SEGate,
    can_fuse,
    conv_norm_aglu,
    norm_gate_shortcut_aglu,
)
from apa_det.modeling import APABasicBlock, APABasicStem, APABottleneckBlock


def randomized(module):
    """Randomize the statistics and affine weights of norms."""
    for m in module.modules():
        for name in ("running_mean", "running_var", "weight", "bias"):
            value = getattr(m, name, None)
            if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) and value is not None:
                value.data.uniform_(0.5, 1.5)
    return module


def conv(norm, channels=6):
    norm = norm(channels) if callable(norm) else get_norm(norm, channels)
    return randomized(Conv2d(4, channels, 3, padding=1, bias=False, norm=norm))


def run(function, module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = function(x)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    return [out.detach(), x.grad, *(p.grad for p in module.parameters())]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1, b.abs().max().item()))


@pytest.mark.parametrize("norm", [EvalBatchNorm2d, "FrozenBN"])
def test_conv_norm_aglu(norm):
    parts = nn.ModuleList([conv(norm), AGLU()])
    x = torch.randn(2, 4, 9, 8)
    assert can_fuse(*parts)
    expected = run(lambda x: parts[1](parts[0](x)), parts, x)
    assert_same(run(lambda x: conv_norm_aglu(x, *parts), parts, x), expected)


@pytest.mark.parametrize("norm", [EvalBatchNorm2d, ""])
@pytest.mark.parametrize("top_share", [None, 0.5, 1.0])
def test_norm_gate_shortcut_aglu(top_share, norm):
    gate = top_share and SEGate(6, reduction=2, dropout=0.0, top_share=top_share)
    parts = nn.ModuleDict({"conv": conv(norm), "act": AGLU()})
    if gate:
        parts["gate"] = gate
    x, shortcut = torch.randn(2, 4, 9, 8), torch.randn(2, 6, 9, 8)
    assert can_fuse(parts["conv"], parts["act"], gate, shortcut=True)

    def separate(x):
        out = parts["conv"](x)
        return parts["act"]((gate(out) if gate else out) + shortcut)

    def fused(x):
        return norm_gate_shortcut_aglu(x, parts["conv"], gate, shortcut, parts["act"])

    assert_same(run(fused, parts, x), run(separate, parts, x))


def test_can_fuse():
    assert not can_fuse(conv("GN", 32), AGLU())
    assert not can_fuse(conv(EvalBatchNorm2d), nn.ReLU())
    assert not can_fuse(Conv2d(4, 6, 3), AGLU())
    assert can_fuse(Conv2d(4, 6, 3), AGLU(), shortcut=True)
    assert not can_fuse(conv("GN", 32), AGLU(), shortcut=True)
    assert not can_fuse(Conv2d(4, 6, 3, norm=EvalBatchNorm2d(6), activation=torch.relu), AGLU())
    assert not can_fuse(conv(EvalBatchNorm2d), AGLU(), CBAMGate(6))
    batch_norm = conv("BN")
    assert not can_fuse(batch_norm, AGLU())
    assert can_fuse(batch_norm.eval(), AGLU())
    hooked = AGLU()
    handle = hooked.register_forward_hook(lambda *_: None)
    assert not can_fuse(conv(EvalBatchNorm2d), hooked)
    handle.remove()
    assert can_fuse(conv(EvalBatchNorm2d), hooked)


@pytest.mark.parametrize(
    "build",
    [
        lambda fuse: APABasicStem(norm=EvalBatchNorm2d, activation="aglu", fuse=fuse),
        lambda fuse: APABasicBlock(
            3, 6, norm=EvalBatchNorm2d, activation="aglu", gate="se", fuse=fuse
        ),
        lambda fuse: APABottleneckBlock(
            3,
            8,
            bottleneck_channels=4,
            stride=2,
            norm="FrozenBN",
            activation="aglu",
            gate="se",
            fuse=fuse,
        ),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_blocks(build, autocast):
    torch.manual_seed(0)
    fused, x = randomized(build(True)), torch.randn(2, 3, 20, 24)
    for module in fused.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    separate = copy.deepcopy(fused)
    separate.fuse = False
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        results = [run(block, block, x) for block in (fused, separate)]
    if autocast:
        error = max(
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(*results, strict=True)
            if b is not None
        )
        assert error < 0.05
    else:
        assert_same(*results)
