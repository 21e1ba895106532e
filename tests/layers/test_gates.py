"""The gates against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from hypothesis import given
from hypothesis import strategies as st

from apa_det import add_apa_config, apa
from apa_det.errors import UserError
from apa_det.layers import CBAMGate, SEGate, gate_from_config, get_gate, keep_strongest


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


def test_plain_se():
    """Hu et al.: sigmoid(W2 relu(W1 mean(x))), in training too."""
    gate = get_gate("plain_se", 32, activation="apa", dropout=0.5)
    assert {name for name, _ in gate.named_parameters()} == {"fc1.weight", "fc2.weight"}
    x = torch.randn(2, 32, 5, 3)
    hidden = (x.flatten(2).mean(2) @ gate.fc1.weight.T).relu()
    gates = (hidden @ gate.fc2.weight.T).sigmoid()
    torch.testing.assert_close(gate.train()(x), x * gates[:, :, None, None])


@pytest.mark.parametrize("activation", ["apa", "sigmoid"])
def test_spatial(activation):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.APA.GATE_SPATIAL_ACTIVATION = activation
    gate = gate_from_config(cfg, "spatial")(32).eval()
    x = torch.randn(2, 32, 9, 11)
    pooled = torch.stack([x.max(1).values, x.mean(1)], dim=1)
    z = F.conv2d(pooled, gate.spatial_conv.weight, padding=3) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(gate(x), x * eta(gate.spatial_activation, z))
    # behind a channel gate of another activation
    cfg.MODEL.APA.GATE_ACTIVATION = "sigmoid" if activation == "apa" else "apa"
    gate = gate_from_config(cfg, "cbam")(32).eval()
    assert isinstance(gate.spatial_activation, torch.nn.Sigmoid) == (activation == "sigmoid")
    assert isinstance(gate.activation, torch.nn.Sigmoid) != (activation == "sigmoid")


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
    with pytest.raises(
        UserError, match="Unknown gate 'ce'; expected one of none, cbam, plain_se, se, spatial"
    ):
        get_gate("ce", 8)


def test_keep_strongest_by_hand():
    gates = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.8, 0.2, 0.6, 0.7]], requires_grad=True)
    kept = keep_strongest(gates, 0.5)
    assert torch.equal(kept, torch.tensor([[0.0, 0.9, 0.5, 0.0], [0.8, 0.0, 0.0, 0.7]]))
    (kept * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert gates.grad.tolist() == [[0, 2, 3, 0], [1, 0, 0, 4]]
    assert keep_strongest(gates, 1.0) is gates
    assert keep_strongest(gates, 0.01).count_nonzero(dim=1).tolist() == [1, 1]
    assert keep_strongest(torch.full((2, 100), 0.5), 0.07).count_nonzero(dim=1).tolist() == [7, 7]


@given(st.integers(1, 40), st.integers(1, 100))
def test_keep_strongest_count(channels, percent):
    gates = torch.rand(3, channels, generator=torch.Generator().manual_seed(percent)) + 0.1
    kept = keep_strongest(gates, percent / 100)
    number = -(-percent * channels // 100)
    assert kept.count_nonzero(dim=1).tolist() == [number] * 3
    for row, all_of_row in zip(kept, gates, strict=True):
        assert torch.equal(row[row > 0], all_of_row[row > 0])
        assert all_of_row[row == 0].numel() == 0 or all_of_row[row == 0].max() <= row[row > 0].min()


@pytest.mark.parametrize("name", ["se", "cbam"])
def test_sparse_gate(name):
    """Dropped channels are 0, the others as without top_share; top_share 1 drops none."""
    torch.manual_seed(0)
    args = {"reduction": 2, "dropout": 0.0}
    plain = get_gate(name, 32, **args).eval()
    sparse, full = (get_gate(name, 32, **args, top_share=s).eval() for s in (0.25, 1.0))
    for gate in (sparse, full):
        gate.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 5, 3)
    assert torch.equal(full(x), plain(x))
    passes = sparse(x).flatten(2).abs().sum(2) > 0
    assert passes.sum(1).tolist() == [8, 8]
    if name == "se":
        assert torch.equal(sparse(x)[passes], plain(x)[passes])
        strength = plain.gates(x.mean(dim=(2, 3)))
        weakest = strength.masked_fill(~passes, 2.0).amin(1)
        assert (weakest >= strength.masked_fill(passes, -1.0).amax(1)).all()
    sparse(x).sum().backward()
    assert sparse.fc2.weight.grad.abs().sum(1).count_nonzero() == passes.any(0).sum()


def test_top_share_from_config():
    cfg = get_cfg()
    add_apa_config(cfg)
    assert gate_from_config(cfg, "se")(8).top_share == 1.0
    cfg.MODEL.APA.GATE_TOP_SHARE = 0.5
    assert gate_from_config(cfg, "cbam")(8).top_share == 0.5
    cfg.MODEL.APA.GATE_TOP_SHARE = 0.0
    with pytest.raises(UserError, match=r"GATE_TOP_SHARE .* must be in \(0, 1\], got 0.0"):
        gate_from_config(cfg, "se")(8)
