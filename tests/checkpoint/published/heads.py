"""FPN, RPN, box head and mask head."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

STRIDES = (4, 8, 16, 32, 64)


class Conv(nn.Module):
    """A convolution, nested one level deeper as in mmdet's names."""

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


class NormedLinear(nn.Linear):
    def __init__(self, in_features, out_features, temperature):
        super().__init__(in_features, out_features)
        self.temperature = temperature

    def forward(self, x):
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True) + 1e-6)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-6) * self.temperature
        return F.linear(x, weight, self.bias)


class BBoxHead(nn.Module):
    """classifier: gumbel or normed_softmax (LVIS), softmax (COCO), wrapped_cauchy or normed_sigmoid
    (V3Det)."""

    def __init__(self, num_classes, classifier):
        super().__init__()
        self.shared_fcs = nn.ModuleList([nn.Linear(256 * 49, 1024), nn.Linear(1024, 1024)])
        self.classifier = classifier
        self.fc_cls = {
            "gumbel": lambda: nn.Linear(1024, num_classes),
            "softmax": lambda: nn.Linear(1024, num_classes + 1),
            "normed_softmax": lambda: NormedLinear(1024, num_classes + 1, 20),
            "normed_sigmoid": lambda: NormedLinear(1024, num_classes, 50),
            "wrapped_cauchy": lambda: WrappedCauchy(1024, num_classes + 1),
        }[classifier]()
        agnostic = classifier in ("wrapped_cauchy", "normed_sigmoid")
        self.fc_reg = nn.Linear(1024, 4 if agnostic else 4 * num_classes)

    def forward(self, features):
        x = features.flatten(1)
        for fc in self.shared_fcs:
            x = F.relu(fc(x))
        return self.fc_cls(x), self.fc_reg(x)

    def scores(self, logits):
        if self.classifier == "gumbel":
            return torch.exp(-torch.exp(-logits))
        if self.classifier == "normed_sigmoid":
            return logits.sigmoid()
        return logits.softmax(dim=1)[:, :-1]


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
    """temperature None: learned, squared."""

    def __init__(self, in_channels, out_channels, temperature=None):
        super().__init__(in_channels, out_channels, 1)
        self.fixed = temperature
        if temperature is None:
            self.tempearture = nn.Parameter(torch.full((1,), 4.5))

    def forward(self, x):
        temperature = self.tempearture**2 if self.fixed is None else self.fixed
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True) + 1e-6)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-6) * temperature
        return F.conv2d(x, weight, self.bias)


class MaskHead(nn.Module):
    """CARAFE or a deconvolution, and a cosine predictor, or a plain one (temperature "none")."""

    def __init__(self, num_classes, temperature, carafe):
        super().__init__()
        self.convs = nn.ModuleList(Conv(256, 256, 3, padding=1) for _ in range(4))
        self.carafe = carafe
        self.upsample = CARAFE() if carafe else nn.ConvTranspose2d(256, 256, 2, stride=2)
        plain = temperature == "none"
        self.conv_logits = (
            nn.Conv2d(256, num_classes, 1) if plain else NormedConv(256, num_classes, temperature)
        )

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        x = self.upsample(x)
        return self.conv_logits(x if self.carafe else F.relu(x))


class RoIHead(nn.Module):
    def __init__(self, num_classes, classifier, cascade, masks, temperature, carafe):
        super().__init__()
        stages = 3 if cascade else 1
        heads = nn.ModuleList(BBoxHead(num_classes, classifier) for _ in range(stages))
        self.bbox_head = heads if cascade else heads[0]
        if masks:
            heads = nn.ModuleList(MaskHead(num_classes, temperature, carafe) for _ in range(stages))
            self.mask_head = heads if cascade else heads[0]
