"""Per-channel parameters."""

import pytest
import torch
from torch import nn

from apa_det import inject, restore


class VariedChannels(nn.Module):
    """relu gets several widths, gelu does not run, and the ReLU call is channels-last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 7)
        self.conv = nn.Conv2d(3, 5, 1)
        self.relu, self.gelu, self.sigmoid = nn.ReLU(), nn.GELU(), nn.Sigmoid()

    def forward(self, x, skip=True):
        for part in (x, x[:, :2]):
            self.relu(part)
        x = self.conv(x)
        x = self.fc(x.permute(0, 2, 3, 1)).relu()
        return self.sigmoid(x.mean(dim=(1, 2))) if skip else self.gelu(x)


def test_per_channel():
    model, x = VariedChannels(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    args = {"parameters": "per_channel", "example": x}
    with pytest.raises(ValueError, match="of relu: it gets inputs with 2, 3 channels"):
        inject(model, "relu", **args)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="of gelu: it does not run"):
        inject(model, "gelu", **args)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    inject(model, ["act", "sigmoid"], like="replaced", **args)
    assert model.act.num_channels == model.sigmoid.num_channels == 7
    torch.testing.assert_close(model(x), expected, atol=0.001, rtol=0)
    nn.init.uniform_(model.act.kappa_param, 0.5, 2)
    z = model.fc(model.conv(x).permute(0, 2, 3, 1))
    kappa = model.act.kappa_param.flatten()
    torch.testing.assert_close(model.act(z), z * torch.sigmoid(kappa * z))
    with pytest.raises(ValueError, match="has 7 channels; its input has shape"):
        model.act(torch.ones(2, 7, 3))
    restore(model)
    inject(model, "gelu", parameters="per_channel", example=(x, False))
    assert model.gelu.num_channels == 7
