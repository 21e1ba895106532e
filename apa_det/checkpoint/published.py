"""Recognize the published detectors by their tensors, and the kind of the gates of any model."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..errors import UserError
from .names import BOTTOM_UP, to_detectron2

LVIS, COCO, V3DET = "LVISv1-InstanceSegmentation", "COCO-InstanceSegmentation", "V3Det-Detection"
_GATE_KEY = "MODEL.APA.GATE"
_UPSAMPLE = "MODEL.ROI_MASK_HEAD.UPSAMPLE"
_LEARNED = "MODEL.ROI_MASK_HEAD.PREDICTOR_LEARN_TEMPERATURE"
_GATE = re.compile(r"(.*(?:^|\.)(?:roi_|fc_)?gate)\.(.+)")
_CARAFE = r".*\.upsample\.channel_compressor\..*"
_COUNTER = ".num_batches_tracked"


class Features(NamedTuple):
    """What the tensors of a detector say about its architecture. None of a config: any value."""

    classifier_rows: int
    heads: str  # mask_rcnn, faster_rcnn, cascade_rcnn or cascade_mask_rcnn
    depth: int | None = 50
    groups: int = 1
    aglu: bool = True
    wrapped_cauchy: bool = False
    swin: bool = False
    carafe: bool | None = None

    def fit(self, config: "Features") -> bool:
        return all(b in (None, a) for a, b in zip(self, config, strict=True))


class PublishedConfig(NamedTuple):
    """The config that fits a published detector.

    Attributes:
        path: path in ``configs/``.
        overrides: the keys to set, where the checkpoint differs from the config.
    """

    path: str
    overrides: dict[str, object]

    def __str__(self) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.overrides.items())
        return f"configs/{self.path}" + (f" with {settings}" if settings else "")


def _masks(upsample: str, learned: bool, gate: str = "se") -> dict[str, object]:
    return {_GATE_KEY: gate, _UPSAMPLE: upsample, _LEARNED: learned}


_V3DET = dict(classifier_rows=13205, wrapped_cauchy=True)
_NORMED = dict(classifier_rows=13204, aglu=False)
_NO_GATE, _SE, _PLAIN_SE = {_GATE_KEY: "none"}, {_GATE_KEY: "se"}, {_GATE_KEY: "plain_se"}
# The features of each config, and the keys that its checkpoints may override
_CONFIGS = [
    (
        f"{LVIS}/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml",
        Features(1203, "mask_rcnn"),
        _masks("carafe", True),
    ),
    (
        f"{LVIS}/mask_rcnn_SE_R_101_FPN_AGLU_GOL_2x.yaml",
        Features(1203, "mask_rcnn", 101),
        _masks("deconv", False),
    ),
    (
        f"{LVIS}/mask_rcnn_SE_X_101_64x4d_FPN_AGLU_GOL_2x.yaml",
        Features(1203, "mask_rcnn", 101, groups=64),
        _masks("deconv", False),
    ),
    (
        f"{COCO}/mask_rcnn_SE_R_50_FPN_AGLU_2x.yaml",
        Features(81, "mask_rcnn"),
        _masks("deconv", False),
    ),
    *(
        (
            f"{LVIS}/mask_rcnn_R_{depth}_FPN_normed_FRACAL_2x.yaml",
            Features(1204, "mask_rcnn", depth, aglu=False, carafe=True),
            _masks("carafe", depth == 50, "none"),
        )
        for depth in (50, 101)
    ),
    *(
        (f"{V3DET}/{heads}_{name}_2x.yaml", Features(heads=heads, **features), gate)
        for heads in ("faster_rcnn", "cascade_rcnn")
        for name, features, gate in (
            ("SE_R_50_FPN_AGLU", _V3DET, _SE),
            ("SE_R_50_FPN_wrapped_cauchy", {**_V3DET, "aglu": False}, _PLAIN_SE),
            ("R_50_FPN_wrapped_cauchy", {**_V3DET, "aglu": False}, _NO_GATE),
            ("R_50_FPN_normed_sigmoid", _NORMED, _NO_GATE),
        )
        if (heads, name) != ("cascade_rcnn", "R_50_FPN_wrapped_cauchy")
    ),
    (
        f"{V3DET}/mask_rcnn_R_50_FPN_normed_sigmoid_2x.yaml",
        Features(heads="mask_rcnn", **_NORMED),
        _masks("deconv", False, "none"),
    ),
    (
        f"{V3DET}/faster_rcnn_swin_B_FPN_AGLU_2x.py",
        Features(heads="faster_rcnn", depth=None, swin=True, **_V3DET),
        _NO_GATE,
    ),
]


def published_config(state: Mapping[str, Tensor]) -> PublishedConfig | None:
    """Return the config that fits a published detector; None if the detector is unknown.

    Args:
        state: the weights, under the published names or under those of apa_det.
    """
    state = {to_detectron2(name) or name: tensor for name, tensor in state.items()}
    features, settings = _features(state), _settings(state)
    fitting = []
    for path, config, defaults in _CONFIGS:
        if features is not None and features.fit(config):
            known = {k: v for k, v in settings.items() if k in defaults or k.startswith(_GATE_KEY)}
            overrides = {k: v for k, v in known.items() if defaults.get(k) != v}
            fitting.append(PublishedConfig(path, overrides))
    return min(fitting, key=lambda config: len(config.overrides), default=None)


def _features(state: Mapping[str, Tensor]) -> Features | None:
    layer = next((t for n, t in state.items() if n.endswith(".cls_score.weight")), None)
    if layer is None or not layer.dim() or not _has(state, r"roi_heads\.box_head\..*"):
        return None
    heads = "mask_rcnn" if _has(state, r"roi_heads\.mask_head\..*") else "faster_rcnn"
    if _has(state, r"roi_heads\.box_head\.0\..*"):
        heads = "cascade_mask_rcnn" if heads == "mask_rcnn" else "cascade_rcnn"
    conv = state.get(f"{BOTTOM_UP}res2.0.conv2.weight")
    return Features(
        len(layer),
        heads,
        resnet_depth(state),
        groups=len(conv) // max(conv.shape[1], 1) if conv is not None and conv.dim() == 4 else 1,
        aglu=_has(state, r"backbone\.(?!.*gate\.).*\.lambda_param"),
        wrapped_cauchy=_has(state, r".*\.cls_score\.g"),
        swin=_has(state, r"backbone\.bottom_up\.layers\..*"),
        carafe=_has(state, _CARAFE),
    )


def _settings(state: Mapping[str, Tensor]) -> dict[str, object]:
    return {
        **gate_settings(state),
        _UPSAMPLE: "carafe" if _has(state, _CARAFE) else "deconv",
        _LEARNED: _has(state, r".*mask_head\.(.*\.)?predictor\.temperature"),
    }


def _has(names: Collection[str], pattern: str) -> bool:
    return any(map(re.compile(pattern).fullmatch, names))


def resnet_depth(names: Collection[str]) -> int | None:
    """Return 50 or 101, by the bottleneck blocks of the third stage; None for another backbone."""
    pattern = re.compile(r"(?:.*\.)?(?:layer3|res4)\.(\d+)\.conv3\.weight")
    blocks = {match.group(1) for match in map(pattern.fullmatch, names) if match}
    return {6: 50, 23: 101}.get(len(blocks))


def gate_settings(names: Iterable[str]) -> dict[str, object]:
    """Return the values of ``MODEL.APA.GATE*`` that fit tensors, by their names in apa_det."""
    parts = {match.group(2) for match in map(_GATE.fullmatch, names) if match}
    spatial = "spatial_conv.weight" in parts
    if "fc1.weight" not in parts:
        settings = {_GATE_KEY: "spatial" if spatial else "none"}
    elif spatial:
        settings = {_GATE_KEY: "cbam"}
    else:
        settings = {_GATE_KEY: "se" if "norm.weight" in parts else "plain_se"}
    if settings[_GATE_KEY] in ("se", "cbam") and "activation.lambda_param" not in parts:
        settings[f"{_GATE_KEY}_ACTIVATION"] = "sigmoid"
    if spatial and "spatial_activation.lambda_param" not in parts:
        settings[f"{_GATE_KEY}_SPATIAL_ACTIVATION"] = "sigmoid"
    return settings


def partial_gates(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Return the gates of a model of which a file has some tensors, but not all, or others.

    Args:
        state: the weights of the file, under the model's names.
        expected: the state dict of the model.

    Returns:
        By the name of each such gate, its tensors in the file and in the model, by name.
    """
    files, models = _by_gate(state), _by_gate(expected)
    result = {}
    for gate, ours in models.items():
        theirs = files.get(gate, {})
        fits = theirs.keys() == ours.keys() and not _different_sizes(theirs, ours)
        if theirs and not fits:
            result[gate] = theirs, ours
    return result


def _different_sizes(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in ours.items() if theirs[name].numel() != tensor.numel()]


def require_whole_gates(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise a UserError if a file would fill only part of a gate: see :func:`partial_gates`."""
    partial = partial_gates(state, expected)
    if not partial:
        return
    gate, (theirs, ours) = next(iter(partial.items()))
    if theirs.keys() == ours.keys():
        name = _different_sizes(theirs, ours)[0]
        difference = (
            f"{gate}.{name} has the shape {tuple(theirs[name].shape)} in the file, and "
            f"{tuple(ours[name].shape)}"
        )
        fix = f"{_GATE_KEY}_PER_CHANNEL and {_GATE_KEY}_REDUCTION to those of the file"
    else:
        difference = (
            f"{gate} has the tensors {', '.join(sorted(theirs))} in the file, and "
            f"{', '.join(sorted(ours))}"
        )
        fix = ", ".join(f"{key} to {value}" for key, value in gate_settings(state).items())
    raise UserError(
        f"The gates differ: {difference} in the model. Set {fix}; or set MODEL.REINITIALIZE to "
        '["*gate.*"] to start all gates anew.'
    )


def _by_gate(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    gates = defaultdict(dict)
    for name, tensor in state.items():
        match = _GATE.fullmatch(name)
        if match and not name.endswith(_COUNTER):
            gates[match.group(1)][match.group(2)] = tensor
    return gates
