"""The weights that a training starts from, and the model that fits them."""

import os
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ..data.name_matching import match_classes
from ..data.recipe import Setting, StartingWeights
from ..errors import UserError
from .layouts import Layout, recognize, select_state
from .published import published_config, resnet_depth
from .reading import load_checkpoint
from .transfer import stored_class_names

_ZOO = "detectron2://COCO-"
_COCO_MASKS = f"{_ZOO}InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
_COCO_BOXES = f"{_ZOO}Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
_IMAGENET = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
_COCO_BASE = "Base-RCNN-FPN.yaml"
_IMAGENET_BASE = "COCO-InstanceSegmentation/Base-COCO-2x.yaml"
_PUBLISHED_BASE = "LVISv1-InstanceSegmentation/mask_rcnn_SE_R_{}_FPN_AGLU_GOL_2x.yaml"
_WEIGHTS, _TRANSFER, _REINITIALIZE = "MODEL.WEIGHTS", "MODEL.TRANSFER_FROM", "MODEL.REINITIALIZE"


def choose_starting_weights(
    choice: str, class_names: Sequence[str], *, masks: bool, cpu: bool = False
) -> StartingWeights:
    """
    Return the starting weights for a training.

    Args:
        choice: "coco" or "imagenet", which detectron2 downloads; "none" for random weights; or a
            file: detectron2's of these two, a published APA detector or backbone, a torchvision
            ResNet, or any checkpoint beside the ``config.yaml`` of its training.
        class_names: classes of the training set. Class rows are copied by name.
        masks: the training set has masks.
        cpu: the training is on the CPU: random weights are those of a small model.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read, or its model is unknown.
    """
    if choice == "coco":
        return _coco(_COCO_MASKS if masks else _COCO_BOXES, 50, class_names, masks)
    if choice == "imagenet":
        return _imagenet(_IMAGENET, 50)
    if choice == "none":
        return _RANDOM_ON_CPU if cpu else _RANDOM
    return _from_file(os.path.abspath(choice), class_names, masks)


_RANDOM = StartingWeights(
    _COCO_BASE,
    (
        Setting(_WEIGHTS, "", "random"),
        Setting("MODEL.BACKBONE.FREEZE_AT", 0, "nothing is pretrained"),
        Setting("MODEL.APA.ACTIVATION", "aglu", "Adaptive Parametric Activation"),
        Setting("MODEL.APA.GATE", "se", "with an APA gate in each block"),
        Setting("MODEL.RESNETS.NORM", "GN", "needs no pretrained statistics, nor a large batch"),
        Setting("MODEL.RESNETS.STRIDE_IN_1X1", False, "as in torchvision"),
        Setting("MODEL.FPN.NORM", "GN", "as the backbone"),
        Setting("MODEL.ROI_MASK_HEAD.NORM", "GN", "as the backbone"),
        Setting("SOLVER.CLIP_GRADIENTS.ENABLED", True, "the first gradients are large"),
        Setting("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "of each parameter"),
        Setting("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0, "as in the quickstart"),
    ),
    random=True,
)


_RANDOM_ON_CPU = StartingWeights(
    "Quickstart/mask_rcnn_R_18_FPN_APA.yaml",
    (Setting(_WEIGHTS, "", "random; a small model for the CPU, that of _BASE_"),),
    random=True,
)


def _coco(weights: str, depth: int, names: Sequence[str], masks: bool) -> StartingWeights:
    coco = MetadataCatalog.get("coco_2017_train").thing_classes
    classes = _class_rows("coco_2017_train", coco, names, masks)
    return StartingWeights(
        _COCO_BASE,
        (
            Setting(_WEIGHTS, weights, f"trained on COCO{_source(weights)}"),
            *classes,
            Setting("MODEL.RESNETS.DEPTH", depth, "that of the weights"),
        ),
    )


def _source(weights: str) -> str:
    return ", to download; without a network: --weights none or a file" * ("://" in weights)


def _class_rows(
    source: str, source_names: Sequence[str], names: Sequence[str], masks: bool
) -> list[Setting]:
    """Copy class rows by name, or none of them if no class has its name in the checkpoint."""
    matched = sum(match is not None for match in match_classes(names, source_names))
    if matched:
        why = f"copy the rows of {matched} of {len(names)} classes, by name"
        return [Setting(_TRANSFER, source, why)]
    layers = ["*cls_score*", "*bbox_pred*"] + ["*mask_head.predictor*"] * masks
    return [Setting(_REINITIALIZE, layers, "the classes of the weights are others")]


def _imagenet(weights: str, depth: int) -> StartingWeights:
    return StartingWeights(
        _IMAGENET_BASE,
        (
            Setting(_WEIGHTS, weights, f"trained on ImageNet{_source(weights)}"),
            Setting("MODEL.RESNETS.DEPTH", depth, "that of the weights"),
        ),
    )


def _from_file(path: str, names: Sequence[str], masks: bool) -> StartingWeights:
    checkpoint = load_checkpoint(path)
    config = os.path.join(os.path.dirname(path), "config.yaml")
    try:
        source_names = stored_class_names(checkpoint)
        state = select_state(checkpoint)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if os.path.isfile(config):
        rows = _class_rows("checkpoint", source_names, names, masks) if source_names else []
        keys = {setting.key for setting in rows}
        unused = [(_TRANSFER, ""), (_REINITIALIZE, [])]  # the config.yaml may have them
        settings = (
            Setting(_WEIGHTS, path, "with the model of the config.yaml beside it"),
            *rows,
            *(Setting(key, value, "not needed") for key, value in unused if key not in keys),
        )
        return StartingWeights(config, settings, own_config=True)
    layout = recognize(state)
    depth = resnet_depth(state)
    has_gates = any(".se.uniact." in name for name in state)
    if depth and has_gates and layout is Layout.CLASSIFIER:
        return _published(path, _PUBLISHED_BASE.format(depth), [])
    published = published_config(state) if layout is Layout.PUBLISHED else None
    if published and has_gates and _rows(state, "fc_cls") == 1203:
        lvis = MetadataCatalog.get("lvis_v1_train").thing_classes
        classes = _class_rows("lvis_v1_train", lvis, names, masks)
        fit = [Setting(k, v, "as in the weights") for k, v in published.overrides.items()]
        return _published(path, published.path, [*classes, *fit])
    plain = not any(name.endswith((".lambda_param", ".gate.fc1.weight")) for name in state)
    if depth and plain and layout is Layout.DETECTRON2 and _rows(state, "cls_score") == 81:
        return _coco(path, depth, names, masks)
    if depth and plain and layout in (Layout.TORCHVISION, Layout.ZOO):
        return _imagenet(path, depth)
    raise UserError(
        f"The model of {path} is unknown: it is neither a ResNet of ImageNet, nor a detector of "
        "COCO or LVIS that detectron2 or the authors of APA have published. Copy the config.yaml "
        "of its training beside it."
    )


def _published(path: str, base: str, settings: Sequence[Setting]) -> StartingWeights:
    weights = Setting(_WEIGHTS, path, "published for APA, with the model of the base config")
    amp = Setting("SOLVER.AMP.ENABLED", True, "faster, and needs less memory")
    return StartingWeights(base, (weights, *settings, amp), score="gumbel")


def _rows(state: dict, layer: str) -> int | None:
    return next((len(t) for name, t in state.items() if name.endswith(f".{layer}.weight")), None)
