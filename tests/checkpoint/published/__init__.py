"""The published detector, written out plainly with the names of its checkpoints.

It is the reference for the authors' network, and shares no code with apa_det: only torch and
torchvision's RoIAlign and NMS. Every module is named as in the published files.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from .backbone import AGLU, Eta, SEResNet
from .heads import FPN, STRIDES, RoIHead, RPNHead, WrappedCauchy, decode, make_anchors, pool

__all__ = ["STRIDES", "Detector", "SEResNet", "make_anchors", "pool", "randomize"]

MEAN = torch.tensor([123.675, 116.28, 103.53])
STD = torch.tensor([58.395, 57.12, 57.375])
# A single head or the first stage of a cascade, and its further stages
BOX_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class Detector(nn.Module):
    """Mask, Faster or Cascade R-CNN, with the classifiers of ``BBoxHead``."""

    def __init__(
        self,
        num_classes,
        depth=50,
        *,
        gate="se",
        per_channel=False,
        aglu=True,
        classifier="gumbel",
        cascade=False,
        masks=True,
        temperature=None,
        carafe=None,
    ):
        """
        Args:
            temperature: of the mask predictor. None: a learned one. "none": no cosine predictor.
            carafe: None: with a learned temperature.
        """
        super().__init__()
        self.backbone = SEResNet(depth, gate, per_channel, aglu=aglu)
        self.neck = FPN()
        self.rpn_head = RPNHead()
        carafe = temperature is None if carafe is None else carafe
        self.roi_head = RoIHead(num_classes, classifier, cascade, masks, temperature, carafe)

    def maps(self, image):
        """FPN features of a (3, H, W) RGB image with values from 0 to 255.

        The image is normalized, then padded to multiples of 32.
        """
        x = (image - MEAN[:, None, None]) / STD[:, None, None]
        height, width = x.shape[1:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        return self.neck(self.backbone(x[None]))

    def detect(self, image, *, proposals=1000, threshold=1e-4, nms=0.3, limit=300):
        """Boxes (N, 4), scores (N,), classes (N,) and mask probabilities (N, 28, 28).

        A cascade averages the logits of its stages, and the probabilities of its mask heads.
        """
        size = image.shape[1:]
        maps = self.maps(image)
        boxes = self.rpn_head.proposals(maps, size, proposals)
        heads = self.roi_head.bbox_head
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        stages = []
        for k, (head, stds) in enumerate(zip(heads, BOX_STDS, strict=False)):
            logits, deltas = head(pool(maps, boxes, 7))
            stages.append(logits)
            deltas = deltas.view(len(boxes), -1, 4)
            decoded = decode(boxes[:, None].expand_as(deltas), deltas, stds)
            if k + 1 < len(heads):
                boxes = clip_boxes_to_image(decoded[:, 0], size)
        scores = heads[-1].scores(sum(stages) / len(stages))
        boxes = clip_boxes_to_image(decoded, size)
        rows, classes = (scores > threshold).nonzero(as_tuple=True)
        boxes = boxes[rows, classes if boxes.shape[1] > 1 else 0]
        scores = scores[rows, classes]
        keep = batched_nms(boxes, scores, classes, nms)[:limit]
        boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        if not hasattr(self.roi_head, "mask_head"):
            return boxes, scores, classes, None
        heads = self.roi_head.mask_head
        heads = heads if isinstance(heads, nn.ModuleList) else [heads]
        pooled, rows = pool(maps, boxes, 14), torch.arange(len(boxes))
        masks = sum(head(pooled).sigmoid()[rows, classes] for head in heads) / len(heads)
        return boxes, scores, classes, masks


def randomize(model, seed=0):
    """Set random weights and statistics that keep the features of a deep network of order 1."""
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
            # Not near 0, where the plain formula is inaccurate in float32
            module.lambda_param.data.uniform_(0.1, 1, generator=generator)
            module.kappa_param.data.uniform_(low, low + 0.5, generator=generator)
        if isinstance(module, WrappedCauchy):
            module.g.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.zero_()
    return model.eval()
