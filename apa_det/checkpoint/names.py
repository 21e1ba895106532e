"""Names of the published layouts and their counterparts in detectron2, module by module."""

from functools import lru_cache

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


@lru_cache
def _modules(gate: str) -> dict[str, str]:
    block = _BLOCK | (_CBAM if gate == "cbam" else _SE)
    modules = {f"backbone.{theirs}": BOTTOM_UP + ours for theirs, ours in _STEM.items()}
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
        modules[f"roi_head.mask_head.{theirs}"] = f"roi_heads.mask_head.{ours}"
    return modules


@lru_cache
def _inverse_modules(gate: str) -> dict[str, str]:
    return {ours: theirs for theirs, ours in _modules(gate).items()}
