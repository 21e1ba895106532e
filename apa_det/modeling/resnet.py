"""ResNets with configurable activations and channel gates, and backbones built from them."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..errors import UserError
from ..layers import activation_from_config, gate_from_config
from ..layers.activations import Activation
from ..layers.gates import Gate
from ..layers.norm import Norm
from .resnet_blocks import APABasicBlock, APABasicStem, APABottleneckBlock, APADeformBottleneckBlock

NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def make_apa_resnet(
    depth: int = 50,
    *,
    in_channels: int = 3,
    stem_out_channels: int = 64,
    res2_out_channels: int | None = None,
    norm: Norm = "BN",
    activation: Activation | Sequence[Activation] = "relu",
    gate: Gate | Sequence[Gate] = None,
    num_groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = False,
    res5_dilation: int = 1,
    deform_on_per_stage: Sequence[bool] = (False,) * 4,
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
    fuse: bool = True,
    out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    freeze_at: int = 0,
) -> ResNet:
    """Build a ResNet with configurable activations and gates.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels, stem_out_channels: channels of the image and of the stem's output.
        res2_out_channels: output channels of the first stage; they double in each further stage.
            None: 64 for ResNet-18 and -34, else 256.
        norm: as for :func:`detectron2.layers.get_norm`, or "EvalBN".
        activation: see :func:`apa_det.layers.get_activation`; or a list of 5, for the stem and the
            4 stages.
        gate: see :func:`apa_det.layers.get_gate`; or a list of 4, for the stages.
        num_groups, width_per_group: the 3×3 convolutions of the first stage have ``num_groups``
            groups and ``num_groups`` times ``width_per_group`` channels.
        stride_in_1x1: put the stride of a stage into its first 1×1 convolution, not the 3×3.
        res5_dilation: 1 or 2; with 2, the last stage has no stride.
        deform_on_per_stage: for each of the 4 stages, whether its 3×3 convolutions are deformable.
        deform_modulated, deform_num_groups: settings of the deformable convolutions.
        fuse: run norm, gate, shortcut and AGLU in one pass where supported; see
            :mod:`apa_det.layers.fused`.
        out_features: the stages whose features are returned, from "stem" and "res2" to "res5".
        freeze_at: 1 freezes the stem, 2 also the first stage, and so on.

    Raises:
        UserError: the depth does not exist, ResNet-18 or -34 do not support an argument, an
            activation or gate is unknown, or a list has the wrong length.
    """
    if depth not in NUM_BLOCKS:
        depths = ", ".join(map(str, NUM_BLOCKS))
        raise UserError(f"MODEL.RESNETS.DEPTH must be one of {depths}; got {depth}.")
    if res5_dilation not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {res5_dilation}.")
    basic = depth < 50
    if res2_out_channels is None:
        res2_out_channels = 64 if basic else 256
    if basic:
        needed = {
            "RES2_OUT_CHANNELS": (res2_out_channels, 64),
            "RES5_DILATION": (res5_dilation, 1),
            "NUM_GROUPS": (num_groups, 1),
            "DEFORM_ON_PER_STAGE": (list(deform_on_per_stage), [False] * 4),
        }
        for key, (value, only) in needed.items():
            if value != only:
                key = f"MODEL.RESNETS.{key}"
                raise UserError(f"{key} must be {only} for DEPTH {depth}, got {value}.")

    stem_activation, *activations = _per_stage("ACTIVATION_PER_STAGE", activation, 5)
    gates = _per_stage("GATE_PER_STAGE", gate, 4)
    layer_args = {"norm": norm, "fuse": fuse}
    stem = APABasicStem(in_channels, stem_out_channels, activation=stem_activation, **layer_args)
    stages = []
    in_channels = stem_out_channels
    for i, num_blocks in enumerate(NUM_BLOCKS[depth]):
        out_channels = res2_out_channels * 2**i
        dilation = res5_dilation if i == 3 else 1
        args = {**layer_args, "activation": activations[i], "gate": gates[i]}
        block_class = APABasicBlock
        if not basic:
            block_class = APABottleneckBlock
            args.update(
                bottleneck_channels=num_groups * width_per_group * 2**i,
                num_groups=num_groups,
                stride_in_1x1=stride_in_1x1,
                dilation=dilation,
            )
            if deform_on_per_stage[i]:
                block_class = APADeformBottleneckBlock
                args.update(deform_modulated=deform_modulated, deform_num_groups=deform_num_groups)
        first_stride = 1 if i == 0 or dilation == 2 else 2
        stages.append(
            ResNet.make_stage(
                block_class,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **args,
            )
        )
        in_channels = out_channels
    return ResNet(stem, stages, out_features=list(out_features), freeze_at=freeze_at)


def _per_stage(key: str, value, number: int) -> list:
    if value is None or isinstance(value, str) or callable(value):
        return [value] * number
    if len(value) != number:
        names = ["stem", "res2", "res3", "res4", "res5"][-number:]
        raise UserError(
            f"MODEL.APA.{key} must have {number} entries, one for each of {', '.join(names)}; got "
            f"{len(value)}."
        )
    return list(value)


@BACKBONE_REGISTRY.register()
def build_apa_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build :func:`make_apa_resnet` with the activations and gates of ``MODEL.APA``.

    All keys of :func:`detectron2.modeling.backbone.build_resnet_backbone` keep their meaning;
    ``MODEL.RESNETS.NORM`` may also be "EvalBN".
    """
    resnets, apa = cfg.MODEL.RESNETS, cfg.MODEL.APA
    activations = [activation_from_config(cfg, name) for name in apa.ACTIVATION_PER_STAGE]
    gates = [gate_from_config(cfg, name) for name in apa.GATE_PER_STAGE]
    return make_apa_resnet(
        resnets.DEPTH,
        in_channels=input_shape.channels,
        stem_out_channels=resnets.STEM_OUT_CHANNELS,
        res2_out_channels=resnets.RES2_OUT_CHANNELS,
        norm=resnets.NORM,
        activation=activations or activation_from_config(cfg, apa.ACTIVATION),
        gate=gates or gate_from_config(cfg, apa.GATE),
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        res5_dilation=resnets.RES5_DILATION,
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_num_groups=resnets.DEFORM_NUM_GROUPS,
        fuse=apa.FUSE,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_apa_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build :func:`build_apa_resnet_backbone` with the FPN of ``build_resnet_fpn_backbone``."""
    return _build_fpn(cfg, build_apa_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_apa_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build :func:`build_apa_resnet_backbone` with an FPN up to P7, for RetinaNet and FCOS."""
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
