"""Names of the published layouts and their counterparts in detectron2, module by module."""

import re
from functools import lru_cache

from torch import Tensor

from ..modeling.resnet import NUM_BLOCKS

BOTTOM_UP = "backbone.bottom_up."

_SE = {
    "se.norm": "gate.norm",
    "se.excitation.0": "gate.fc1",
    "se.excitation.2": "gate.fc2",
    "se.uniact": "gate.activation",
}
_CBAM = {
    "cbam.ChannelGate.norm": "gate.norm",
    "cbam.ChannelGate.mlp.1": "gate.fc1",
    "cbam.ChannelGate.mlp.3": "gate.fc2",
    "cbam.ChannelGate.uniact": "gate.activation",
    "cbam.SpatialGate.spatial.conv": "gate.spatial_conv",
    "cbam.SpatialGate.spatial.bn": "gate.spatial_norm",
    "cbam.SpatialGate.uniact": "gate.spatial_activation",
}
_BLOCK = {
    **{f"conv{k}": f"conv{k}" for k in (1, 2, 3)},
    **{f"bn{k}": f"conv{k}.norm" for k in (1, 2, 3)},
    **{f"unirect{k}": f"act{k}" for k in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm", "relu": "stem.act"}
_RPN = {"rpn_conv": "conv", "rpn_cls": "objectness_logits", "rpn_reg": "anchor_deltas"}
_MASK_HEAD = {
    **{f"convs.{i}.conv": f"mask_fcn{i + 1}" for i in range(8)},
    "upsample": "deconv",
    "upsample.channel_compressor": "upsample.channel_compressor",
    "upsample.content_encoder": "upsample.content_encoder",
    "conv_logits": "predictor",
}
_BOX_PREDICTOR = {"fc_cls": "cls_score", "fc_reg": "bbox_pred"}

_SWIN_BLOCK = {
    "norm1": "norm1",
    "attn.w_msa": "attn",
    "attn.w_msa.qkv": "attn.qkv",
    "attn.w_msa.proj": "attn.proj",
    "norm2": "norm2",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.0.1": "mlp.act",
    "ffn.layers.1": "mlp.fc2",
}
_SWIN = {
    "patch_embed.projection": "patch_embed.proj",
    "patch_embed.norm": "patch_embed.norm",
    **{f"norm{i}": f"norm{i}" for i in range(4)},
    **{
        f"stages.{i}.downsample.{layer}": f"layers.{i}.downsample.{layer}"
        for i in range(3)
        for layer in ("norm", "reduction")
    },
    **{
        f"stages.{i}.blocks.{j}.{theirs}": f"layers.{i}.blocks.{j}.{ours}"
        for i in range(4)
        for j in range(18)
        for theirs, ours in _SWIN_BLOCK.items()
    },
}

_PARAMETERS = {"tempearture": "temperature"}  # spelled this way in the published files


def to_detectron2(name: str) -> str | None:
    """Return detectron2's name of a tensor of a published detector, or None if it has none."""
    module, _, parameter = name.rpartition(".")
    module = _modules("cbam" if ".cbam." in name else "se").get(module)
    return module and f"{module}.{_PARAMETERS.get(parameter, parameter)}"


def to_published(name: str, *, cbam: bool = False) -> str | None:
    """Invert :func:`to_detectron2`; set ``cbam`` if the gates are CBAM gates."""
    module, _, parameter = name.rpartition(".")
    module = _inverse_modules("cbam" if cbam else "se").get(module)
    inverse = {ours: theirs for theirs, ours in _PARAMETERS.items()}
    return module and f"{module}.{inverse.get(parameter, parameter)}"


def to_detectron2_value(name: str, tensor: Tensor) -> Tensor:
    """Reorder the channels of Swin's patch merging, given a published name and its tensor.

    There the 2 × 2 neighbors of a channel are adjacent, row by row; in detectron2, the channels of
    a neighbor are, column by column.
    """
    if not _is_merging(name, tensor):
        return tensor
    split = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)  # channel, row, column
    return split.movedim(-3, -1).transpose(-3, -2).reshape(tensor.shape)


def to_published_value(name: str, tensor: Tensor) -> Tensor:
    """Invert :func:`to_detectron2_value`; the name is the published one."""
    if not _is_merging(name, tensor):
        return tensor
    split = tensor.reshape(*tensor.shape[:-1], 2, 2, -1)  # column, row, channel
    return split.transpose(-3, -2).movedim(-1, -3).reshape(tensor.shape)


def _is_merging(name: str, tensor: Tensor) -> bool:
    valid = tensor.numel() > 0 and tensor.dim() > 0 and tensor.shape[-1] % 4 == 0
    return valid and _MERGING.fullmatch(name) is not None


_MERGING = re.compile(r"backbone\.stages\.\d\.downsample\.(norm|reduction)\.(weight|bias)")


@lru_cache
def _modules(gate: str) -> dict[str, str]:
    block = _BLOCK | (_CBAM if gate == "cbam" else _SE)
    backbone = _STEM | _SWIN
    modules = {f"backbone.{theirs}": BOTTOM_UP + ours for theirs, ours in backbone.items()}
    for stage in range(4):
        for i in range(max(blocks[stage] for blocks in NUM_BLOCKS.values())):
            for theirs, ours in block.items():
                theirs = f"backbone.layer{stage + 1}.{i}.{theirs}"
                modules[theirs] = f"{BOTTOM_UP}res{stage + 2}.{i}.{ours}"
        modules[f"neck.lateral_convs.{stage}.conv"] = f"backbone.fpn_lateral{stage + 2}"
        modules[f"neck.fpn_convs.{stage}.conv"] = f"backbone.fpn_output{stage + 2}"
    for theirs, ours in _RPN.items():
        modules[f"rpn_head.{theirs}"] = f"proposal_generator.rpn_head.{ours}"
    for stage in ("", ".0", ".1", ".2"):  # a single head, or the stages of a cascade
        for i in range(2):
            theirs = f"roi_head.bbox_head{stage}.shared_fcs.{i}"
            modules[theirs] = f"roi_heads.box_head{stage}.fc{i + 1}"
        for theirs, ours in _BOX_PREDICTOR.items():
            theirs = f"roi_head.bbox_head{stage}.{theirs}"
            modules[theirs] = f"roi_heads.box_predictor{stage}.{ours}"
        for theirs, ours in _MASK_HEAD.items():
            modules[f"roi_head.mask_head{stage}.{theirs}"] = f"roi_heads.mask_head{stage}.{ours}"
    return modules


@lru_cache
def _inverse_modules(gate: str) -> dict[str, str]:
    return {ours: theirs for theirs, ours in _modules(gate).items()}
