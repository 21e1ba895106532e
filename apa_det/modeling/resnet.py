"""detectron2's ResNet with other activations and with gates in its blocks.

Alexandridis et al., "Adaptive Parametric Activation" (ECCV 2024): AGLU in the place of every ReLU,
and a channel attention gate with APA on the residual branch, before the shortcut is added. The
modules that hold a convolution are detectron2's own, so its checkpoints fit.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from torch import Tensor, nn

from ..layers import (
    activation_from_config,
    conv_norm_aglu,
    fuses,
    gate_from_config,
    get_activation,
    get_gate,
    norm_from_name,
    norm_gate_shortcut_aglu,
)

__all__ = [
    "APABasicBlock",
    "APABasicStem",
    "APABottleneckBlock",
    "APADeformBottleneckBlock",
    "build_apa_resnet_backbone",
    "build_apa_resnet_fpn_backbone",
    "build_apa_retinanet_resnet_fpn_backbone",
]

Activation = str | Callable[[int], nn.Module]
Gate = str | Callable[[int], nn.Module | None] | None

NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class APABasicStem(BasicStem):
    """detectron2's ResNet stem with another activation, which goes on training when it is frozen.

    Args:
        activation: see :func:`apa_det.layers.get_activation`.
        fuse: whether norm and AGLU run in one pass where they can; see :mod:`apa_det.layers.fused`.
        others: as for :class:`detectron2.modeling.backbone.resnet.BasicStem`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 64,
        *,
        norm: str | Callable[[int], nn.Module] = "BN",
        activation: Activation = "relu",
        fuse: bool = True,
    ):
        super().__init__(in_channels, out_channels, norm)
        self.act = get_activation(activation, out_channels)
        self.fuse = fuse

    def forward(self, x: Tensor) -> Tensor:
        """Args: x of shape (N, C, H, W). Returns: shape (N, C', H / 4, W / 4)."""
        if not torch.jit.is_scripting() and self.fuse and fuses(self.conv1, self.act):
            x = conv_norm_aglu(x, self.conv1, self.act)
        else:
            x = self.act(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)

    def freeze(self) -> "APABasicStem":
        super().freeze()
        self.act.requires_grad_(True)
        return self


class _GatedBlock(CNNBlockBase):
    """What the blocks have in common: a gate, the parts of their forward pass, and freezing."""

    def _add_gate(self, gate: Gate, fuse: bool) -> None:
        self.gate = get_gate(gate, self.out_channels)
        self.fuse = fuse

    def _start(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.fuse and fuses(self.conv1, self.act1):
            return conv_norm_aglu(x, self.conv1, self.act1)
        return self.act1(self.conv1(x))

    def freeze(self) -> "CNNBlockBase":
        super().freeze()
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return self


class _GatedBottleneck(_GatedBlock):
    """A bottleneck with its activations; the convolutions come from the class mixed in after it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        activation: Activation = "relu",
        gate: Gate = None,
        fuse: bool = True,
        **kwargs,
    ):
        super().__init__(
            in_channels, out_channels, bottleneck_channels=bottleneck_channels, **kwargs
        )
        self.act1 = get_activation(activation, bottleneck_channels)
        self.act2 = get_activation(activation, bottleneck_channels)
        self.act3 = get_activation(activation, out_channels)
        self._add_gate(gate, fuse)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x of shape (N, C, H, W). Returns: shape (N, C', H / stride, W / stride)."""
        out = self._middle(self._start(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if not torch.jit.is_scripting() and self.fuse and fuses(self.conv3, self.act3, self.gate):
            return norm_gate_shortcut_aglu(out, self.conv3, self.gate, shortcut, self.act3)
        out = self.conv3(out)
        if self.gate is not None:
            out = self.gate(out)
        out += shortcut
        return self.act3(out)

    def _middle(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.fuse and fuses(self.conv2, self.act2):
            return conv_norm_aglu(x, self.conv2, self.act2)
        return self.act2(self.conv2(x))


class APABasicBlock(_GatedBlock, BasicBlock):
    """The block of ResNet-18 and -34, with other activations and a gate.

    Args:
        activation: see :func:`apa_det.layers.get_activation`; each place has a module of its own.
        gate: see :func:`apa_det.layers.get_gate`.
        fuse: whether norm, gate, shortcut and AGLU run in one pass where they can; see
            :mod:`apa_det.layers.fused`.
        others: as for :class:`detectron2.modeling.backbone.resnet.BasicBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        activation: Activation = "relu",
        gate: Gate = None,
        fuse: bool = True,
        **kwargs,
    ):
        super().__init__(in_channels, out_channels, **kwargs)
        self.act1 = get_activation(activation, out_channels)
        self.act2 = get_activation(activation, out_channels)
        self._add_gate(gate, fuse)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x of shape (N, C, H, W). Returns: shape (N, C', H / stride, W / stride)."""
        out = self._start(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if not torch.jit.is_scripting() and self.fuse and fuses(self.conv2, self.act2, self.gate):
            return norm_gate_shortcut_aglu(out, self.conv2, self.gate, shortcut, self.act2)
        out = self.conv2(out)
        if self.gate is not None:
            out = self.gate(out)
        out += shortcut
        return self.act2(out)


class APABottleneckBlock(_GatedBottleneck, BottleneckBlock):
    """The block of ResNet-50 and deeper, with other activations and a gate.

    Args:
        activation: see :func:`apa_det.layers.get_activation`; each place has a module of its own.
        gate: see :func:`apa_det.layers.get_gate`.
        fuse: whether norm, gate, shortcut and AGLU run in one pass where they can; see
            :mod:`apa_det.layers.fused`.
        others: as for :class:`detectron2.modeling.backbone.resnet.BottleneckBlock`.
    """


class APADeformBottleneckBlock(_GatedBottleneck, DeformBottleneckBlock):
    """:class:`APABottleneckBlock` with a deformable 3×3 convolution.

    Args:
        activation, gate, fuse: as for :class:`APABottleneckBlock`.
        others: as for :class:`detectron2.modeling.backbone.resnet.DeformBottleneckBlock`.
    """

    def _middle(self, x: Tensor) -> Tensor:
        offset = self.conv2_offset(x)
        if not self.deform_modulated:
            return self.act2(self.conv2(x, offset))
        offset, mask = offset.tensor_split([offset.shape[1] // 3 * 2], dim=1)
        return self.act2(self.conv2(x, offset, mask.sigmoid()))


@BACKBONE_REGISTRY.register()
def build_apa_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A ResNet with the activation and the gate of ``MODEL.APA``.

    Every key that :func:`detectron2.modeling.backbone.build_resnet_backbone` reads has the same
    meaning here; ``MODEL.RESNETS.NORM`` may also be "EvalBN".

    Raises:
        ValueError: a depth that does not exist, a key that ResNet-18 and -34 have no use for, or an
            unknown activation, gate or gate activation.
    """
    resnets = cfg.MODEL.RESNETS
    depth = resnets.DEPTH
    if depth not in NUM_BLOCKS:
        raise ValueError(f"MODEL.RESNETS.DEPTH is one of {sorted(NUM_BLOCKS)}, not {depth}.")
    if resnets.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION is 1 or 2, not {resnets.RES5_DILATION}.")
    basic = depth < 50
    if basic:
        _check_basic_blocks(resnets)

    layer_args = {
        "norm": norm_from_name(resnets.NORM),
        "activation": activation_from_config(cfg, cfg.MODEL.APA.ACTIVATION),
        "fuse": cfg.MODEL.APA.FUSE,
    }
    stem = APABasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, **layer_args)
    block_args = dict(layer_args, gate=gate_from_config(cfg, cfg.MODEL.APA.GATE))
    if not basic:
        block_args.update(num_groups=resnets.NUM_GROUPS, stride_in_1x1=resnets.STRIDE_IN_1X1)

    stages = []
    in_channels = resnets.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(NUM_BLOCKS[depth]):
        out_channels = resnets.RES2_OUT_CHANNELS * 2**i
        dilation = resnets.RES5_DILATION if i == 3 else 1
        stage_args = dict(block_args)
        if basic:
            block_class = APABasicBlock
        else:
            block_class = APABottleneckBlock
            width = resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**i
            stage_args.update(bottleneck_channels=width, dilation=dilation)
            if resnets.DEFORM_ON_PER_STAGE[i]:
                block_class = APADeformBottleneckBlock
                stage_args["deform_modulated"] = resnets.DEFORM_MODULATED
                stage_args["deform_num_groups"] = resnets.DEFORM_NUM_GROUPS
        first_stride = 1 if i == 0 or dilation == 2 else 2
        stages.append(
            ResNet.make_stage(
                block_class,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **stage_args,
            )
        )
        in_channels = out_channels
    return ResNet(
        stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


def _check_basic_blocks(resnets: CfgNode) -> None:
    fixed = {
        "RES2_OUT_CHANNELS": 64,
        "RES5_DILATION": 1,
        "NUM_GROUPS": 1,
        "DEFORM_ON_PER_STAGE": [False] * 4,
    }
    for key, value in fixed.items():
        if resnets[key] != value:
            raise ValueError(
                f"MODEL.RESNETS.{key} must be {value} for DEPTH {resnets.DEPTH}, "
                f"not {resnets[key]}."
            )


@BACKBONE_REGISTRY.register()
def build_apa_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_apa_resnet_backbone` with an FPN, as in ``build_resnet_fpn_backbone``."""
    return _build_fpn(cfg, build_apa_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_apa_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_apa_resnet_backbone` with an FPN up to P7, as RetinaNet and FCOS take it."""
    bottom_up = build_apa_resnet_backbone(cfg, input_shape)
    top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _build_fpn(cfg, bottom_up, top_block)


def _build_fpn(cfg: CfgNode, bottom_up: ResNet, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
