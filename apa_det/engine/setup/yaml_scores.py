"""Class scores and post-processing in yaml configs: where their keys are, and what they need."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from torch import nn

from ...config.defaults import KEYS
from ...errors import UserError
from ...modeling import APARetinaNet, PostProcessing, meta_architecture
from ...modeling.losses import BoxClassLoss
from ...modeling.postprocessing import postprocessing_arguments, postprocessings

_BOX_HEAD, _RETINANET = "MODEL.ROI_BOX_HEAD", "MODEL.RETINANET"
_DENSE = ("RetinaNet", "FCOS")
_LOSSES = ("CLASS_LOSS", "CLASS_WEIGHTS", "USE_DROP_LOSS")
_POSTPROCESSING = (
    *("TEST.SOFT_NMS.METHOD", "TEST.CLASS_AGNOSTIC_NMS", "TEST.SCORE_THRESH_PER_GROUP"),
    "TEST.MASK_SCORE",
)
_HEADS = "MODEL.ROI_HEADS.NAME to APAROIHeads or APACascadeROIHeads"


def is_apa_retinanet(cfg: CfgNode) -> bool:
    """Return whether the model is :class:`APARetinaNet` or a subclass."""
    name = meta_architecture(cfg)
    kind = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(kind, type) and issubclass(kind, APARetinaNet)


def score_node(cfg: CfgNode) -> str:
    """Return the node of the keys of class scores, class losses and calibration."""
    return _RETINANET if is_apa_retinanet(cfg) else _BOX_HEAD


def get_value(cfg: CfgNode, key: str) -> object:
    """Return the value of a key, given with its nodes."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def check_scores(cfg: CfgNode) -> None:
    """Raise a UserError for keys of class scores that do not act or work in the model."""
    node = score_node(cfg)
    other = _BOX_HEAD if node == _RETINANET else _RETINANET
    for name in ("CLASS_SCORE", "CLASS_LOSS", "CLASS_WEIGHTS", "CALIBRATION", "USE_DROP_LOSS"):
        key = KEYS.get(f"{other}.{name}")
        if key is None or get_value(cfg, key.name) == key.default:
            continue
        value = f"{key.name} {get_value(cfg, key.name)}"
        if other == _RETINANET:
            raise UserError(
                f"{value} acts in MODEL.META_ARCHITECTURE APARetinaNet only, got "
                f"{meta_architecture(cfg)}: set that, or {key.name} to {key.default or 'None'}."
            )
        same = f"{_RETINANET}.{name}"
        instead = f"set {same} instead" if same in KEYS else f"set {_RETINANET}.CLASS_LOSS instead"
        raise UserError(f"{value} has no effect in {meta_architecture(cfg)}: {instead}.")
    _check_calibration(cfg, node)


def _check_calibration(cfg: CfgNode, node: str) -> None:
    values, heads = get_value(cfg, node), cfg.MODEL.ROI_HEADS.NAME
    if not values.CALIBRATION:
        return
    key = f"{node}.CALIBRATION {values.CALIBRATION}"
    if meta_architecture(cfg) in _DENSE:
        raise UserError(
            f"{key} works with RoI heads only: leave it empty, or set MODEL.META_ARCHITECTURE to "
            f"APARetinaNet and {_RETINANET}.CALIBRATION."
        )
    if node == _BOX_HEAD and _has_detectron2_heads(cfg):
        raise UserError(f"{key} has no effect on {heads}: set {_HEADS}.")
    if not values.CALIBRATION_STRENGTH:
        raise UserError(
            f"{key} has no effect with {node}.CALIBRATION_STRENGTH 0: set a strength, e.g. the one "
            "fitted by tools/calibrate.py."
        )


def check_loss(cfg: CfgNode, model: nn.Module) -> None:
    """Raise a UserError for a class loss that the built model does not have."""
    head = cfg.MODEL.ROI_BOX_HEAD
    key = next((key for key in _LOSSES if head[key]), None)
    if key is not None and not any(isinstance(m, BoxClassLoss) for m in model.modules()):
        raise UserError(
            f"MODEL.ROI_BOX_HEAD.{key} has no effect in this model: set {_HEADS}, or unset the key."
        )


def check_postprocessing(cfg: CfgNode, model: nn.Module | None = None) -> None:
    """Raise a UserError for keys of post-processing that do not act.

    Args:
        cfg: the config.
        model: the built model. None: check only what needs none.
    """
    used = [key for key in _POSTPROCESSING if get_value(cfg, key) != KEYS[key].default]
    tested = [key for key in used if key != "TEST.SCORE_THRESH_PER_GROUP"]
    if tested and cfg.TEST.AUG.ENABLED:
        raise UserError(
            f"{tested[0]} does not work with TEST.AUG.ENABLED, which has its own NMS: set one of "
            "the two to its default."
        )
    if model is None or not used:
        return
    has_mask_score = any(getattr(m, "mask_score", False) for m in model.modules())
    if not postprocessings(model) or ("TEST.MASK_SCORE" in used and not has_mask_score):
        dense = "" if "TEST.MASK_SCORE" in used else ", or MODEL.META_ARCHITECTURE to APARetinaNet"
        key = "TEST.MASK_SCORE" if "TEST.MASK_SCORE" in used else used[0]
        raise UserError(
            f"{key} has no effect in {type(model).__name__} of this config: set {_HEADS}{dense}, "
            "or unset the key."
        )


def find_postprocessing(cfg: CfgNode) -> list[PostProcessing]:
    """Return the post-processing of a config, as a list that is empty if its model has none."""
    if score_node(cfg) == _RETINANET:
        number = cfg.MODEL.RETINANET.NUM_CLASSES
    elif meta_architecture(cfg) in _DENSE or _has_detectron2_heads(cfg):
        return []
    else:
        number = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return [PostProcessing(number, **postprocessing_arguments(cfg))]


def _has_detectron2_heads(cfg: CfgNode) -> bool:
    heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    return heads.__module__.startswith("detectron2.")
