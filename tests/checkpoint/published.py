"""The published detector, written out plainly with the names of its checkpoints.

It stands for the authors' network in the tests, and shares no code with apa_det: only torch and
torchvision's RoIAlign and NMS. Every module is named as in the published files.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])
STRIDES = (4, 8, 16, 32, 64)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Of a single head, or of the first stage of a cascade; and of the others
BOX_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


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
    def __init__(self):
        super().__init__()
        self.spatial = nn.Module()
        self.spatial.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial.bn = nn.BatchNorm2d(1)
        self.uniact = Eta()

    def forward(self, x):
        pooled = torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)
        return x * self.uniact(self.spatial.bn(self.spatial.conv(pooled)))


class CBAM(nn.Module):
    def __init__(self, channels, eta_channels):
        super().__init__()
        self.ChannelGate = ChannelGate(channels, eta_channels)
        self.SpatialGate = SpatialGate()

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))


class Bottleneck(nn.Module):
    def __init__(self, in_channels, width, stride, gate, per_channel):
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.unirect1 = AGLU(width if per_channel else None)
        self.unirect2 = AGLU(width if per_channel else None)
        self.unirect3 = AGLU(out_channels if per_channel else None)
        if gate == "se":
            self.se = SE(out_channels, out_channels if per_channel else None)
        elif gate == "cbam":
            self.cbam = CBAM(out_channels, out_channels if per_channel else None)
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
        out = self.se(out) if hasattr(self, "se") else self.cbam(out)
        return self.unirect3(out + (x if self.downsample is None else self.downsample(x)))


class SEResNet(nn.Module):
    """With ``num_classes`` it is the ImageNet classifier: pooled features through ``fc``."""

    def __init__(self, depth=50, gate="se", per_channel=False, num_classes=None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = AGLU(64 if per_channel else None)
        channels = 64
        for k, blocks in enumerate(BLOCKS[depth]):
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if i == 0 and k > 0 else 1
                layer.append(Bottleneck(channels, 64 * 2**k, stride, gate, per_channel))
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


class Conv(nn.Module):
    """A convolution one level down, as its framework wraps it."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x):
        return self.conv(x)


class FPN(nn.Module):
    def __init__(self):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Conv(c, 256, 1) for c in (256, 512, 1024, 2048))
        self.fpn_convs = nn.ModuleList(Conv(256, 256, 3, padding=1) for _ in range(4))

    def forward(self, features):
        maps = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        for k in (3, 2, 1):
            size = maps[k - 1].shape[2:]
            maps[k - 1] = maps[k - 1] + F.interpolate(maps[k], size=size, mode="nearest")
        maps = [conv(x) for conv, x in zip(self.fpn_convs, maps, strict=True)]
        return [*maps, F.max_pool2d(maps[3], 1, stride=2)]


class RPNHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.rpn_conv = nn.Conv2d(256, 256, 3, padding=1)
        self.rpn_cls = nn.Conv2d(256, 3, 1)
        self.rpn_reg = nn.Conv2d(256, 12, 1)

    def forward(self, maps):
        hidden = [F.relu(self.rpn_conv(x)) for x in maps]
        return [self.rpn_cls(x) for x in hidden], [self.rpn_reg(x) for x in hidden]

    def proposals(self, maps, size, count):
        boxes, scores, levels = [], [], []
        for level, (cls, reg) in enumerate(zip(*self(maps), strict=True)):
            cls = cls[0].permute(1, 2, 0).flatten()
            reg = reg[0].permute(1, 2, 0).reshape(-1, 4)
            top = cls.sort(descending=True, stable=True)[1][:count]
            anchors = make_anchors(maps[level].shape[2:], STRIDES[level])
            boxes.append(clip_boxes_to_image(decode(anchors[top], reg[top]), size))
            scores.append(cls[top])
            levels.append(torch.full_like(top, level))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        real = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        boxes, scores, levels = boxes[real], scores[real], levels[real]
        return boxes[batched_nms(boxes, scores, levels, 0.7)[:count]]


def make_anchors(size, stride):
    """Scale 8, ratios (height to width) 1/2, 1, 2; on the corners of the cells."""
    ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    half_width, half_height = 8 * stride / ratios / 2, 8 * stride * ratios / 2
    base = torch.stack([-half_width, -half_height, half_width, half_height], dim=1)
    y, x = torch.meshgrid(*(torch.arange(n) * stride for n in size), indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


def decode(boxes, deltas, stds=(1.0, 1.0, 1.0, 1.0)):
    dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(dim=-1)
    limit = math.log(1000 / 16)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x = boxes[..., 0] + width / 2 + dx * width
    y = boxes[..., 1] + height / 2 + dy * height
    width = width * dw.clamp(-limit, limit).exp()
    height = height * dh.clamp(-limit, limit).exp()
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)


def pool(maps, boxes, size):
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = torch.log2(sides / 56 + 1e-6).floor().clamp(0, 3).long()
    features = torch.zeros(len(boxes), 256, size, size)
    for level in range(4):
        chosen = levels == level
        rois = F.pad(boxes[chosen], (1, 0))
        features[chosen] = roi_align(
            maps[level], rois, size, 1 / STRIDES[level], sampling_ratio=0, aligned=True
        )
    return features


class WrappedCauchy(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.g = nn.Parameter(torch.ones(out_features))

    def forward(self, x):
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True) + 1e-6)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-6)
        cos = F.linear(x, weight, self.bias)
        gamma = torch.sigmoid(self.g)
        return 300 * (1 / 2 / 3.14) * (1 - gamma**2) / (1 + gamma**2 - 2 * gamma * cos)


class BBoxHead(nn.Module):
    def __init__(self, num_classes, v3det):
        super().__init__()
        self.shared_fcs = nn.ModuleList([nn.Linear(256 * 49, 1024), nn.Linear(1024, 1024)])
        if v3det:
            self.fc_cls = WrappedCauchy(1024, num_classes + 1)
        else:
            self.fc_cls = nn.Linear(1024, num_classes)
        self.fc_reg = nn.Linear(1024, 4 if v3det else 4 * num_classes)

    def forward(self, features):
        x = features.flatten(1)
        for fc in self.shared_fcs:
            x = F.relu(fc(x))
        return self.fc_cls(x), self.fc_reg(x)

    def scores(self, logits):
        if isinstance(self.fc_cls, WrappedCauchy):
            return logits.softmax(dim=1)[:, :-1]
        return torch.exp(-torch.exp(-logits))


class CARAFE(nn.Module):
    def __init__(self):
        super().__init__()
        self.channel_compressor = nn.Conv2d(256, 64, 1)
        self.content_encoder = nn.Conv2d(64, 25 * 4, 3, padding=1)

    def forward(self, x):
        kernels = F.pixel_shuffle(self.content_encoder(self.channel_compressor(x)), 2)
        kernels = kernels.softmax(dim=1)
        n, c, h, w = x.shape
        patches = F.unfold(x, 5, padding=2).view(n, c, 25, h, w)
        patches = patches.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        return (patches * kernels[:, None]).sum(dim=2)


class NormedConv(nn.Conv2d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)
        self.tempearture = nn.Parameter(torch.full((1,), 4.5))

    def forward(self, x):
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True) + 1e-6)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-6) * self.tempearture**2
        return F.conv2d(x, weight, self.bias)


class MaskHead(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convs = nn.ModuleList(Conv(256, 256, 3, padding=1) for _ in range(4))
        self.upsample = CARAFE()
        self.conv_logits = NormedConv(256, num_classes)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.conv_logits(self.upsample(x))


class RoIHead(nn.Module):
    def __init__(self, num_classes, v3det, cascade, masks):
        super().__init__()
        heads = [BBoxHead(num_classes, v3det) for _ in range(3 if cascade else 1)]
        self.bbox_head = nn.ModuleList(heads) if cascade else heads[0]
        if masks:
            self.mask_head = MaskHead(num_classes)


class Detector(nn.Module):
    """Mask R-CNN with the Gumbel score; with ``v3det``, Faster R-CNN with a wrapped Cauchy one."""

    def __init__(
        self,
        num_classes,
        depth=50,
        *,
        gate="se",
        per_channel=False,
        v3det=False,
        cascade=False,
        masks=True,
    ):
        super().__init__()
        self.backbone = SEResNet(depth, gate, per_channel)
        self.neck = FPN()
        self.rpn_head = RPNHead()
        self.roi_head = RoIHead(num_classes, v3det, cascade, masks)

    def maps(self, image):
        """image: (3, H, W), RGB in 0 to 255. It is padded to multiples of 32 once normalised."""
        x = (image - MEAN[:, None, None]) / STD[:, None, None]
        height, width = x.shape[1:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        return self.neck(self.backbone(x[None]))

    def detect(self, image, *, proposals=1000, threshold=1e-4, nms=0.3, limit=300):
        """Boxes (N, 4), scores (N,), classes (N,), and mask logits (N, 28, 28) of each's class."""
        size = image.shape[1:]
        maps = self.maps(image)
        boxes = self.rpn_head.proposals(maps, size, proposals)
        heads = self.roi_head.bbox_head
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        stages = []
        for k, (head, stds) in enumerate(zip(heads, BOX_STDS, strict=False)):
            logits, deltas = head(pool(maps, boxes, 7))
            stages.append(head.scores(logits))
            deltas = deltas.view(len(boxes), -1, 4)
            decoded = decode(boxes[:, None].expand_as(deltas), deltas, stds)
            if k + 1 < len(heads):
                boxes = clip_boxes_to_image(decoded[:, 0], size)
        scores = sum(stages) / len(stages)
        boxes = clip_boxes_to_image(decoded, size)
        rows, classes = (scores > threshold).nonzero(as_tuple=True)
        boxes = boxes[rows, classes if boxes.shape[1] > 1 else 0]
        scores = scores[rows, classes]
        keep = batched_nms(boxes, scores, classes, nms)[:limit]
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        if not hasattr(self.roi_head, "mask_head"):
            return boxes, scores, classes, None
        masks = self.roi_head.mask_head(pool(maps, boxes, 14))
        return boxes, scores, classes, masks[torch.arange(len(masks)), classes]


def randomize(model, seed=0):
    """Random weights and statistics that keep the features of a deep network of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            gain = 0.3 if name.startswith(("neck.lateral", "rpn_head.rpn_reg")) else 1.2
            module.weight.data.normal_(0, gain / fan_in**0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(-0.2, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            high = 0.4 if name.endswith("bn3") else 1.2
            module.weight.data.uniform_(high / 2, high, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.num_batches_tracked.fill_(1000)
        if isinstance(module, Eta):
            low = 1 if isinstance(module, AGLU) else -1
            # Not near 0, where float32 does not suffice for the formula as it stands
            module.lambda_param.data.uniform_(0.1, 1, generator=generator)
            module.kappa_param.data.uniform_(low, low + 0.5, generator=generator)
        if isinstance(module, WrappedCauchy):
            module.g.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.zero_()
    return model.eval()
