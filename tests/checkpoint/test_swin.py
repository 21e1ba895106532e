"""Swin with AGLU: published names and channel order, against torchvision's Swin."""

import re

import pytest
import torch
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import nn
from torchvision.models import SwinTransformer as TorchvisionSwin

from apa_det.checkpoint import convert, reverse
from apa_det.injection import inject

DEPTHS, WIDTH = [2, 2, 2, 2], 16
NAMES = {  # of torchvision's blocks and those that are published
    "norm1": "norm1",
    "attn.qkv": "attn.w_msa.qkv",
    "attn.proj": "attn.w_msa.proj",
    "attn": "attn.w_msa",
    "norm2": "norm2",
    "mlp.0": "ffn.layers.0.0",
    "mlp.1": "ffn.layers.0.1",
    "mlp.3": "ffn.layers.1",
}


class AGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.lambda_param = nn.Parameter(torch.empty(1).uniform_(0.1, 1))
        self.kappa_param = nn.Parameter(torch.rand(1))

    def forward(self, z):
        return z * (self.lambda_param * torch.exp(-self.kappa_param * z) + 1) ** (
            -1 / self.lambda_param
        )


def published_name(name):
    if name.startswith("features.0."):
        layer = {"0": "projection", "2": "norm"}[name.split(".")[2]]
        return f"patch_embed.{layer}.{name.split('.')[-1]}"
    number, rest = re.fullmatch(r"features\.(\d)\.(.+)", name).groups()
    stage = (int(number) - 1) // 2
    if int(number) % 2 == 0:
        return f"stages.{stage}.downsample.{rest}"
    block, layer = rest.split(".", 1)
    module, _, parameter = layer.rpartition(".")
    return f"stages.{stage}.blocks.{block}.{NAMES[module]}.{parameter}"


def unfolded(tensor):
    """Order channels as nn.Unfold, from those of (0, 0), (1, 0), (0, 1) and (1, 1) in turn."""
    channels = tensor.shape[-1] // 4
    columns = []
    for channel in range(channels):
        for neighbor in (0, 2, 1, 3):  # (0, 0), (0, 1), (1, 0), (1, 1)
            columns.append(tensor[..., neighbor * channels + channel])
    return torch.stack(columns, dim=-1)


@pytest.fixture(scope="module")
def swin():
    """torchvision's Swin with AGLU, and its state under the published names."""
    torch.manual_seed(0)
    model = TorchvisionSwin([4, 4], WIDTH, DEPTHS, [1, 2, 4, 8], [7, 7], num_classes=2).eval()
    for module in model.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.GELU):
            module[1] = AGLU()
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0, module.in_features**-0.5)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("features."):
            name = published_name(name)
            if name.endswith("relative_position_index"):
                tensor = tensor.view(49, 49)
            state[f"backbone.{name}"] = unfolded(tensor) if ".downsample." in name else tensor
    for i in range(4):
        state[f"backbone.norm{i}.weight"] = torch.rand(WIDTH * 2**i)
        state[f"backbone.norm{i}.bias"] = torch.rand(WIDTH * 2**i)
    state["neck.fpn_convs.0.conv.bias"] = torch.zeros(1)
    return model, state


@torch.no_grad()
def test_features(swin):
    theirs, state = swin
    conversion = convert({"state_dict": state})
    prefix = "backbone.bottom_up."
    ours = SwinTransformer(embed_dim=WIDTH, depths=DEPTHS, num_heads=[1, 2, 4, 8]).eval()
    inject(ours, "layers.*.mlp.act", lambda_min=1e-8)
    weights = {
        k.removeprefix(prefix): v.reshape(ours.state_dict()[k.removeprefix(prefix)].shape)
        for k, v in conversion.state.items()
        if k.startswith(prefix)
    }
    ours.load_state_dict(weights)
    image = torch.rand(1, 3, 448, 480)
    features, x = ours(image), image
    for i in range(4):
        x = theirs.features[2 * i + 1](theirs.features[2 * i](x))
        norm = f"backbone.norm{i}"
        expected = nn.functional.layer_norm(
            x, x.shape[-1:], state[f"{norm}.weight"], state[f"{norm}.bias"]
        )
        expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(features[f"p{i}"], expected, rtol=1e-4, atol=1e-4)


def test_round_trip(swin):
    _, state = swin
    back = reverse(convert({"state_dict": state}).state)
    back.check()
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[name], tensor) for name, tensor in state.items())
