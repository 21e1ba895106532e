"""The backbone: a ResNet with AGLU, or ReLU, and gates."""

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Eta(nn.Module):
    def __init__(self, channels=None):
        super().__init__()
        shape = (1,) if channels is None else (1, channels, 1, 1)
        self.lambda_param = nn.Parameter(torch.rand(shape))
        self.kappa_param = nn.Parameter(torch.rand(shape) - 1)

    def forward(self, z):
        lambda_ = self.lambda_param.clamp(min=1e-4)
        return (lambda_ * torch.exp(-self.kappa_param * z) + 1) ** (-1 / lambda_)


class AGLU(Eta):
    def __init__(self, channels=None):
        super().__init__(channels)
        nn.init.uniform_(self.kappa_param, 1, 1.3)

    def forward(self, z):
        return z * super().forward(z)


class SE(nn.Module):
    def __init__(self, channels, eta_channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.excitation = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 16, channels, bias=False),
            nn.Dropout(0.1),
        )
        self.uniact = Eta(eta_channels)

    def forward(self, x):
        z = self.excitation(self.norm(x.mean(dim=(2, 3))))
        return x * self.uniact(z[:, :, None, None])


class PlainSE(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.excitation = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 16, channels, bias=False),
        )

    def forward(self, x):
        return x * self.excitation(x.mean(dim=(2, 3))).sigmoid()[:, :, None, None]


class ChannelGate(nn.Module):
    def __init__(self, channels, eta_channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // 16),
            nn.ReLU(),
            nn.Linear(channels // 16, channels),
            nn.Dropout(0.1),
        )
        self.uniact = Eta(eta_channels)

    def forward(self, x):
        pools = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        z = sum(self.mlp(self.norm(pool)) for pool in pools)
        return x * self.uniact(z[:, :, None, None])


class SpatialGate(nn.Module):
    def __init__(self, apa):
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial.bn = nn.BatchNorm2d(1)
        self.uniact = Eta() if apa else nn.Sigmoid()

    def forward(self, x):
        pooled = torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)
        return x * self.uniact(self.spatial.bn(self.spatial.conv(pooled)))


class CBAM(nn.Module):
    """kind: cbam, cbam_sigmoid (in the spatial gate), spatial or spatial_sigmoid."""

    def __init__(self, kind, channels, eta_channels):
        super().__init__()
        if kind.startswith("cbam"):
            self.ChannelGate = ChannelGate(channels, eta_channels)
        self.SpatialGate = SpatialGate(apa=not kind.endswith("sigmoid"))

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x) if hasattr(self, "ChannelGate") else x)


class Bottleneck(nn.Module):
    def __init__(self, in_channels, width, stride, gate, per_channel, aglu):
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        for i, channels in enumerate((width, width, out_channels), start=1):
            activation = AGLU(channels if per_channel else None) if aglu else nn.ReLU()
            setattr(self, f"unirect{i}", activation)
        if gate == "se":
            self.se = SE(out_channels, out_channels if per_channel else None)
        elif gate == "plain_se":
            self.se = PlainSE(out_channels)
        elif gate != "none":
            self.cbam = CBAM(gate, out_channels, out_channels if per_channel else None)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        out = self.unirect1(self.bn1(self.conv1(x)))
        out = self.unirect2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        for name in ("se", "cbam"):
            out = getattr(self, name)(out) if hasattr(self, name) else out
        return self.unirect3(out + (x if self.downsample is None else self.downsample(x)))


class SEResNet(nn.Module):
    """The ImageNet classifier (with ``fc``) if ``num_classes`` is given."""

    def __init__(self, depth=50, gate="se", per_channel=False, num_classes=None, aglu=True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = AGLU(64 if per_channel else None) if aglu else nn.ReLU()
        channels = 64
        for k, blocks in enumerate(BLOCKS[depth]):
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if i == 0 and k > 0 else 1
                layer.append(Bottleneck(channels, 64 * 2**k, stride, gate, per_channel, aglu))
                channels = 4 * 64 * 2**k
            setattr(self, f"layer{k + 1}", layer)
        if num_classes is not None:
            self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features
