"""The backbones as image classifiers, registered in timm: apa_resnet18, 34, 50, 101 and 152."""

from collections.abc import Callable
from functools import partial

from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from ..errors import MissingPackageError
from ..layers import get_activation, get_gate
from ..layers.gates import get_gate_activation
from ..modeling.resnet import NUM_BLOCKS, make_apa_resnet

try:
    from timm.models import register_model
except ImportError as error:
    raise MissingPackageError(
        "Pretraining needs timm, which is not installed: pip install timm."
    ) from error


class APAClassifier(nn.Module):
    """A ResNet, global average pooling and a linear layer.

    The state dict has detectron2's names of ResNets, such as ``res2.0.conv1.weight``, so that the
    backbone of a detector can be loaded from it, and ``fc``.

    Args:
        backbone: as returned by :func:`apa_det.modeling.make_apa_resnet`.
        num_classes: number of outputs.
        num_features: number of channels of the last stage.
    """

    def __init__(self, backbone: ResNet, num_classes: int, num_features: int):
        super().__init__()
        self.stem = backbone.stem
        for name in backbone.stage_names:
            self.add_module(name, getattr(backbone, name))
        self.stage_names = tuple(backbone.stage_names)
        self.num_classes, self.num_features = num_classes, num_features
        self.fc = nn.Linear(num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last feature map, (N, C, H / 32, W / 32)."""
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last feature map to logits, (N, num_classes), or to pooled features."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def make_classifier(
    depth: int,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    activation: str = "aglu",
    gate: str = "se",
) -> APAClassifier:
    """Build a classifier with the published initialization for ImageNet.

    λ and κ of AGLU are drawn from U(0, 1) and U(0.8, 1.2), and λ >= 1e-8; those of the gates from
    U(0, 1), and from U(−1, 0) in SE gates and U(0, 1) in CBAM and spatial gates.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: number of outputs.
        in_chans: channels of the image.
        activation, gate: see :func:`apa_det.modeling.make_apa_resnet`.

    Raises:
        UserError: the activation or the gate is unknown.
    """
    kappa_range = (-1.0, 0.0) if gate == "se" else (0.0, 1.0)
    gates = partial(
        get_gate, gate, activation=partial(get_gate_activation, "apa", kappa_range=kappa_range)
    )
    backbone = make_apa_resnet(
        depth,
        in_channels=in_chans,
        activation=partial(get_activation, activation, kappa_range=(0.8, 1.2), lambda_min=1e-8),
        gate=gates,
    )
    return APAClassifier(backbone, num_classes, backbone.output_shape()["res5"].channels)


def _register(depth: int) -> Callable[..., APAClassifier]:
    def build(
        pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs
    ) -> APAClassifier:
        return make_classifier(depth, **kwargs)

    build.__name__ = f"apa_resnet{depth}"
    build.__module__ = __name__
    return register_model(build)


for _depth in NUM_BLOCKS:
    _register(_depth)
