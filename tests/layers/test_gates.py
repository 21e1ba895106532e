"""The gates against their formulae, written out."""

import pytest
import torch
import torch.nn.functional as F

from apa_det import apa
from apa_det.layers import CBAMGate, SEGate, get_gate


def excite(gate, pooled):
    hidden = F.linear(F.layer_norm(pooled, pooled.shape[1:]), gate.fc1.weight, gate.fc1.bias)
    return F.linear(hidden.relu(), gate.fc2.weight, gate.fc2.bias)


def eta(module, z):
    if isinstance(module, torch.nn.Sigmoid):
        return z.sigmoid()
    return apa(z, module.lambda_param, module.kappa_param)


@pytest.mark.parametrize("activation", ["apa", "sigmoid"])
def test_se(activation):
    torch.manual_seed(0)
    gate = SEGate(32, activation=activation).eval()
    x = torch.randn(2, 32, 5, 3)
    gates = eta(gate.activation, excite(gate, x.flatten(2).mean(2)))
    torch.testing.assert_close(gate(x), x * gates[:, :, None, None])
    features = torch.randn(4, 32)
    gates = eta(gate.activation, excite(gate, features))
    torch.testing.assert_close(gate(features), features * gates)


@pytest.mark.parametrize("activation", ["apa", "sigmoid"])
def test_cbam(activation):
    torch.manual_seed(0)
    gate = CBAMGate(32, activation=activation).eval()
    x = torch.randn(2, 32, 9, 11)
    z = excite(gate, x.flatten(2).mean(2)) + excite(gate, x.flatten(2).max(2).values)
    y = x * eta(gate.activation, z)[:, :, None, None]
    pooled = torch.stack([y.max(1).values, y.mean(1)], dim=1)
    spatial = F.conv2d(pooled, gate.spatial_conv.weight, padding=3) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(gate(x), y * eta(gate.spatial_activation, spatial))


def test_dropout_acts_on_the_logits():
    torch.manual_seed(0)
    gate = SEGate(64, activation="sigmoid", dropout=0.5)
    x = torch.randn(1, 64)
    with torch.no_grad():
        gate.fc1.weight.copy_(x.expand(4, 64))
        gate.fc2.weight.fill_(1.0)
    gates = gate(x) / x
    dropped = torch.isclose(gates, torch.tensor(0.5))
    assert 16 < dropped.sum() < 48 and (gates[~dropped] > 0.9).all()


def test_few_channels():
    assert SEGate(8).fc1.weight.shape == (1, 8)
    assert SEGate(8, reduction=2).fc1.weight.shape == (4, 8)


def test_get_gate():
    assert get_gate("none", 8) is None and get_gate(None, 8) is None
    assert isinstance(get_gate("cbam", 8, reduction=2), CBAMGate)
    assert isinstance(get_gate(torch.nn.Identity, 8), torch.nn.Identity)
    with pytest.raises(ValueError, match="Unknown gate 'ce': choose none, se or cbam"):
        get_gate("ce", 8)
