"""ResNets with configurable activations and channel gates, and backbones built from them."""

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Literal

from detectron2.config import CfgNode, get_cfg
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
from .resnet_blocks import (
    APABasicBlock,
    APABasicStem,
    APABottleneckBlock,
    APADeepLabStem,
    APADeformBottleneckBlock,
)

NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_STEMS = {"basic": APABasicStem, "deeplab": APADeepLabStem}
# Keys of other ResNets that the backbones do not have, and their only values that change nothing
_NEUTRAL = {
    "MODEL.RESNETS.DEFORM_INTERVAL": 1,
    "MODEL.BACKBONE.ANTI_ALIAS": False,
    "MODEL.MOBILENET": False,
}
_DEEPLAB_KEYS = {"STEM_TYPE", "RES4_DILATION", "RES5_MULTI_GRID"}


def make_apa_resnet(
    depth: int = 50,
    *,
    in_channels: int = 3,
    stem: Literal["basic", "deeplab"] = "basic",
    stem_out_channels: int = 64,
    res2_out_channels: int | None = None,
    norm: Norm = "BN",
    activation: Activation | Sequence[Activation] = "relu",
    gate: Gate | Sequence[Gate] = None,
    num_groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = False,
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] = (1, 1, 1),
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
        stem: "basic", one 7×7 convolution; or "deeplab", three 3×3 convolutions.
        res2_out_channels: output channels of the first stage; they double in each further stage.
            None: 64 for ResNet-18 and -34, else 256.
        norm: as for :func:`detectron2.layers.get_norm`, or "EvalBN".
        activation: see :func:`apa_det.layers.get_activation`; or a list of 5, for the stem and the
            4 stages.
        gate: see :func:`apa_det.layers.get_gate`; or a list of 4, for the stages.
        num_groups, width_per_group: the 3×3 convolutions of the first stage have ``num_groups``
            groups and ``num_groups`` times ``width_per_group`` channels.
        stride_in_1x1: put the stride of a stage into its first 1×1 convolution, not the 3×3.
        res4_dilation: 1 or 2; with 2, that stage has no stride.
        res5_dilation: 1, 2 or 4; above 1, the last stage has no stride.
        res5_multi_grid: factor of ``res5_dilation`` in each of the 3 blocks of the last stage.
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
    if stem not in _STEMS:
        raise UserError(f"MODEL.RESNETS.STEM_TYPE must be basic or deeplab, got {stem!r}.")
    if res4_dilation not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES4_DILATION must be 1 or 2, got {res4_dilation}.")
    if res5_dilation not in (1, 2, 4):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION must be 1, 2 or 4, got {res5_dilation}.")
    if res4_dilation == 2 and res5_dilation != 4:
        raise UserError(
            f"MODEL.RESNETS.RES5_DILATION must be 4 with RES4_DILATION 2, got {res5_dilation}."
        )
    multi_grid = list(res5_multi_grid)
    if len(multi_grid) != 3 or any(type(x) is not int or x < 1 for x in multi_grid):
        raise UserError(
            "MODEL.RESNETS.RES5_MULTI_GRID must be 3 integers >= 1, one for each block of res5; "
            f"got {multi_grid}."
        )
    basic = depth < 50
    if res2_out_channels is None:
        res2_out_channels = 64 if basic else 256
    if basic:
        needed = {
            "RES2_OUT_CHANNELS": (res2_out_channels, 64),
            "RES4_DILATION": (res4_dilation, 1),
            "RES5_DILATION": (res5_dilation, 1),
            "RES5_MULTI_GRID": (multi_grid, [1, 1, 1]),
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
    stem_block = _STEMS[stem](
        in_channels, stem_out_channels, activation=stem_activation, **layer_args
    )
    stages = []
    in_channels = stem_out_channels
    for i, num_blocks in enumerate(NUM_BLOCKS[depth]):
        out_channels = res2_out_channels * 2**i
        dilation = (1, 1, res4_dilation, res5_dilation)[i]
        args = {**layer_args, "activation": activations[i], "gate": gates[i]}
        block_class = APABasicBlock
        if not basic:
            block_class = APABottleneckBlock
            args.update(
                bottleneck_channels=num_groups * width_per_group * 2**i,
                num_groups=num_groups,
                stride_in_1x1=stride_in_1x1,
                dilation_per_block=[dilation * x for x in multi_grid if i == 3]
                or [dilation] * num_blocks,
            )
            if deform_on_per_stage[i]:
                block_class = APADeformBottleneckBlock
                args.update(deform_modulated=deform_modulated, deform_num_groups=deform_num_groups)
        first_stride = 1 if i == 0 or dilation > 1 else 2
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
    return ResNet(stem_block, stages, out_features=list(out_features), freeze_at=freeze_at)


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
    ``MODEL.RESNETS.NORM`` may also be "EvalBN". The keys ``STEM_TYPE``, ``RES4_DILATION`` and
    ``RES5_MULTI_GRID`` that DeepLab adds act as in ``build_resnet_deeplab_backbone``.

    Raises:
        UserError: see :func:`make_apa_resnet`; or the config has a key of another ResNet that this
            one lacks, with a value that would change the model.
    """
    _refuse_other_keys(cfg)
    resnets, apa = cfg.MODEL.RESNETS, cfg.MODEL.APA
    activations = [activation_from_config(cfg, name) for name in apa.ACTIVATION_PER_STAGE]
    gates = [gate_from_config(cfg, name) for name in apa.GATE_PER_STAGE]
    return make_apa_resnet(
        resnets.DEPTH,
        in_channels=input_shape.channels,
        stem=resnets.get("STEM_TYPE", "basic"),
        stem_out_channels=resnets.STEM_OUT_CHANNELS,
        res2_out_channels=resnets.RES2_OUT_CHANNELS,
        norm=resnets.NORM,
        activation=activations or activation_from_config(cfg, apa.ACTIVATION),
        gate=gates or gate_from_config(cfg, apa.GATE),
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        res4_dilation=resnets.get("RES4_DILATION", 1),
        res5_dilation=resnets.RES5_DILATION,
        res5_multi_grid=resnets.get("RES5_MULTI_GRID", (1, 1, 1)),
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_num_groups=resnets.DEFORM_NUM_GROUPS,
        fuse=apa.FUSE,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _refuse_other_keys(cfg: CfgNode) -> None:
    known = {*get_cfg().MODEL.RESNETS, *_DEEPLAB_KEYS}
    others = [f"MODEL.RESNETS.{name}" for name in cfg.MODEL.RESNETS if name not in known]
    for key in {**dict.fromkeys(others), **_NEUTRAL}:
        _require_value(cfg, key, _NEUTRAL.get(key))


def _require_value(cfg: CfgNode, key: str, only: object) -> None:
    """Raise a UserError if the config has this key with another value; None: with any value."""
    *nodes, name = key.split(".")
    node = reduce(getitem, nodes, cfg)
    if name in node and (only is None or node[name] != only):
        fix = f"del cfg.{key}" if only is None else f"set it to {only}"
        raise UserError(
            f"{key} {node[name]} has no effect on the ResNets of apa_det: {fix}, or use another "
            "MODEL.BACKBONE.NAME."
        )


@BACKBONE_REGISTRY.register()
def build_apa_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build :func:`build_apa_resnet_backbone` with the FPN of ``build_resnet_fpn_backbone``."""
    return _build_fpn(cfg, build_apa_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_apa_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build :func:`build_apa_resnet_backbone` with an FPN up to P7, for RetinaNet and FCOS.

    P6 is computed from ``MODEL.FPN.TOP_BLOCK_IN_FEATURE``: "res5", or "p5" as in the backbones of
    CenterNet2 (``build_p67_resnet_fpn_backbone``) and AdelaiDet (``build_fcos_resnet_fpn_backbone``
    with its default ``MODEL.FCOS.TOP_LEVELS``).

    Raises:
        UserError: see :func:`build_apa_resnet_backbone`; or the feature does not exist.
    """
    if "FCOS" in cfg.MODEL:
        _require_value(cfg, "MODEL.FCOS.TOP_LEVELS", 2)
    bottom_up = build_apa_resnet_backbone(cfg, input_shape)
    feature, out_channels = cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE, cfg.MODEL.FPN.OUT_CHANNELS
    levels = {f"p{name.removeprefix('res')}": out_channels for name in cfg.MODEL.FPN.IN_FEATURES}
    levels |= {name: shape.channels for name, shape in bottom_up.output_shape().items()}
    if feature not in ("res5", "p5") or feature not in levels:
        raise UserError(
            "MODEL.FPN.TOP_BLOCK_IN_FEATURE must be res5 or p5, and one of the features "
            f"{', '.join(levels)}; got {feature!r}."
        )
    top_block = LastLevelP6P7(levels[feature], out_channels, feature)
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
