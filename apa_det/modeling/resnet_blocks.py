"""detectron2's ResNet blocks with configurable activations and channel gates.

Alexandridis et al., "Adaptive Parametric Activation" (ECCV 2024): AGLU in place of every ReLU, and
a channel attention gate with APA on the residual branch, before the shortcut is added. The modules
with convolutions are detectron2's own, so its checkpoints fit.
"""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import can_fuse, conv_norm_aglu, get_activation, get_gate, norm_gate_shortcut_aglu
from ..layers.activations import Activation
from ..layers.gates import Gate
from ..layers.norm import Norm, norm_from_name


class APABasicStem(BasicStem):
    """detectron2's ResNet stem with an activation that trains even if the stem is frozen.

    Args:
        activation: see :func:`apa_det.layers.get_activation`.
        fuse: run norm and AGLU in one pass where supported; see :mod:`apa_det.layers.fused`.
        others: as for :class:`detectron2.modeling.backbone.resnet.BasicStem`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 64,
        *,
        norm: Norm = "BN",
        activation: Activation = "relu",
        fuse: bool = True,
    ):
        super().__init__(in_channels, out_channels, norm_from_name(norm))
        self.act = get_activation(activation, out_channels)
        self.fuse = fuse

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / 4, W / 4)."""
        return F.max_pool2d(self._convolve(x), kernel_size=3, stride=2, padding=1)

    def _convolve(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.fuse and can_fuse(self.conv1, self.act):
                return conv_norm_aglu(x, self.conv1, self.act)
        return self.act(self.conv1(x))

    def freeze(self) -> "APABasicStem":
        super().freeze()
        self.act.requires_grad_(True)
        return self


class APADeepLabStem(CNNBlockBase):
    """DeepLab's ResNet stem of three 3×3 convolutions, with activations that always train.

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018). The names are
    those of detectron2's DeepLab project.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output; the first two layers have half as many.
        norm, activation, fuse: as for :class:`APABasicStem`; each layer has its own activation.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 128,
        *,
        norm: Norm = "BN",
        activation: Activation = "relu",
        fuse: bool = True,
    ):
        super().__init__(in_channels, out_channels, 4)
        half, norm = out_channels // 2, norm_from_name(norm)
        channels = (in_channels, half, half, out_channels)
        for k in (1, 2, 3):
            conv = Conv2d(
                *(channels[k - 1], channels[k], 3),
                stride=2 if k == 1 else 1,
                padding=1,
                bias=False,
                norm=get_norm(norm, channels[k]),
            )
            weight_init.c2_msra_fill(conv)
            setattr(self, f"conv{k}", conv)
        for k in (1, 2, 3):
            setattr(self, f"act{k}", get_activation(activation, channels[k]))
        self.fuse = fuse

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / 4, W / 4)."""
        return F.max_pool2d(self._convolve(x), kernel_size=3, stride=2, padding=1)

    def _convolve(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            for conv, act in self._layers():
                fuse = self.fuse and can_fuse(conv, act)
                x = conv_norm_aglu(x, conv, act) if fuse else act(conv(x))
            return x
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.act3(self.conv3(x))

    def _layers(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(getattr(self, f"conv{k}"), getattr(self, f"act{k}")) for k in (1, 2, 3)]

    def freeze(self) -> "APADeepLabStem":
        super().freeze()
        for _, act in self._layers():
            act.requires_grad_(True)
        return self


class _GatedBlock(CNNBlockBase):
    """Common parts of the blocks: the gate, the start of the forward pass, and freezing."""

    def _add_gate(self, gate: Gate, fuse: bool) -> None:
        self.gate = get_gate(gate, self.out_channels)
        self.fuse = fuse
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        if not torch.jit.is_scripting():
            if self.recompute and x.requires_grad:
                return checkpoint(self._block, x, use_reentrant=False, preserve_rng_state=False)
        return self._block(x)

    def _start(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.fuse and can_fuse(self.conv1, self.act1):
                return conv_norm_aglu(x, self.conv1, self.act1)
        return self.act1(self.conv1(x))

    def freeze(self) -> "CNNBlockBase":
        """Freeze all parameters and disable dropout.

        The gradient still flows to the AGLU of the stem. The activations needed for it are
        recomputed in the backward pass, which at this resolution is cheaper than storing them.
        """
        super().freeze()
        self.recompute = True
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return self


class _GatedBottleneck(_GatedBlock):
    """A bottleneck with activations; the next base class provides the convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        norm: Norm = "BN",
        activation: Activation = "relu",
        gate: Gate = None,
        fuse: bool = True,
        **kwargs,
    ):
        kwargs.update(bottleneck_channels=bottleneck_channels, norm=norm_from_name(norm))
        super().__init__(in_channels, out_channels, **kwargs)
        self.act1 = get_activation(activation, bottleneck_channels)
        self.act2 = get_activation(activation, bottleneck_channels)
        self.act3 = get_activation(activation, out_channels)
        self._add_gate(gate, fuse)

    def _block(self, x: Tensor) -> Tensor:
        out = self._middle(self._start(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if not torch.jit.is_scripting():
            if self.fuse and can_fuse(self.conv3, self.act3, self.gate, shortcut=True):
                return norm_gate_shortcut_aglu(out, self.conv3, self.gate, shortcut, self.act3)
        out = self.conv3(out)
        if self.gate is not None:
            out = self.gate(out)
        out += shortcut
        return self.act3(out)

    def _middle(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.fuse and can_fuse(self.conv2, self.act2):
                return conv_norm_aglu(x, self.conv2, self.act2)
        return self.act2(self.conv2(x))


class APABasicBlock(_GatedBlock, BasicBlock):
    """The block of ResNet-18 and -34, with configurable activations and a gate.

    Args:
        activation: see :func:`apa_det.layers.get_activation`; each layer has its own module.
        gate: see :func:`apa_det.layers.get_gate`.
        fuse: run norm, gate, shortcut and AGLU in one pass where supported; see
            :mod:`apa_det.layers.fused`.
        others: as for :class:`detectron2.modeling.backbone.resnet.BasicBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm = "BN",
        activation: Activation = "relu",
        gate: Gate = None,
        fuse: bool = True,
        **kwargs,
    ):
        super().__init__(in_channels, out_channels, norm=norm_from_name(norm), **kwargs)
        self.act1 = get_activation(activation, out_channels)
        self.act2 = get_activation(activation, out_channels)
        self._add_gate(gate, fuse)

    def _block(self, x: Tensor) -> Tensor:
        out = self._start(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if not torch.jit.is_scripting():
            if self.fuse and can_fuse(self.conv2, self.act2, self.gate, shortcut=True):
                return norm_gate_shortcut_aglu(out, self.conv2, self.gate, shortcut, self.act2)
        out = self.conv2(out)
        if self.gate is not None:
            out = self.gate(out)
        out += shortcut
        return self.act2(out)


class APABottleneckBlock(_GatedBottleneck, BottleneckBlock):
    """The block of ResNet-50 and deeper, with configurable activations and a gate.

    Arguments are those of :class:`APABasicBlock` and detectron2's ``BottleneckBlock``.
    """


class APADeformBottleneckBlock(_GatedBottleneck, DeformBottleneckBlock):
    """:class:`APABottleneckBlock` with the deformable 3×3 layer of ``DeformBottleneckBlock``."""

    def _middle(self, x: Tensor) -> Tensor:
        offset = self.conv2_offset(x)
        if not self.deform_modulated:
            return self.act2(self.conv2(x, offset))
        offset, mask = offset.tensor_split([offset.shape[1] // 3 * 2], dim=1)
        return self.act2(self.conv2(x, offset, mask.sigmoid()))
