"""The config keys of dense detectors: those of the box head, under MODEL.RETINANET."""

from . import places
from .head_keys import BOX_HEAD
from .key import Key, Section
from .kinds import integer, name_in, number, one_of

_BOX_HEAD = {key.name.rpartition(".")[2]: key for key in BOX_HEAD.keys}
_SAME = (
    *("SCORE_PER_CLASS", "SCORE_LAMBDA_RANGE", "SCORE_KAPPA_RANGE", "LOGIT_CLAMP"),
    *("CLASS_WEIGHTS", "CLASS_WEIGHTS_BETA", "CLASS_COUNT"),
    *("DROP_LOSS_THRESHOLD", "EQUALIZATION_LOSS_THRESHOLD"),
    *("EQUALIZATION_LOSS_V2_GAMMA", "EQUALIZATION_LOSS_V2_MU", "EQUALIZATION_LOSS_V2_ALPHA"),
    "BALANCED_SOFTMAX_TAU",
)
NODE = "MODEL.RETINANET"


def _same(name: str) -> Key:
    key = _BOX_HEAD[name]
    text = f"As `MODEL.ROI_BOX_HEAD.{name}`."
    return Key(f"{NODE}.{name}", key.default, key.kind, text)


RETINANET = Section(
    "RetinaNet",
    places.RETINANET,
    (
        Key(
            f"{NODE}.CLASS_SCORE",
            "sigmoid",
            one_of("sigmoid", "gumbel", "apa"),
            "Class score. gumbel: APA with λ → 0, κ = 1. apa: learned λ and κ. Every class starts "
            "with the score `MODEL.RETINANET.PRIOR_PROB`.",
        ),
        Key(
            f"{NODE}.CLASS_LOSS",
            "",
            name_in("apa_det.modeling:BOX_CLASS_LOSS_REGISTRY", ""),
            "Loss of the class scores: FocalLoss, CrossEntropy, BalancedSoftmax, DropLoss, "
            "EqualizationLoss, EqualizationLossV2 or FederatedLoss, with anchors for proposals. As "
            "detectron2's, it is a sum over anchors, divided by the running mean of the number of "
            "foreground anchors. Empty: FocalLoss. Losses of softmax scores are refused.",
        ),
        *map(_same, _SAME),
        Key(
            f"{NODE}.FED_LOSS_NUM_CLASSES",
            50,
            integer(">= 1"),
            "As `MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES`.",
        ),
        Key(
            f"{NODE}.FED_LOSS_FREQ_WEIGHT_POWER",
            0.5,
            number(">= 0"),
            "As `MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER`.",
        ),
        Key(
            f"{NODE}.CALIBRATION",
            "",
            name_in("apa_det.modeling:CALIBRATION_REGISTRY", ""),
            "As `MODEL.ROI_BOX_HEAD.CALIBRATION`. The scores are calibrated before the threshold "
            "`SCORE_THRESH_TEST` and the choice of the best `TOPK_CANDIDATES_TEST`.",
        ),
        _same("CALIBRATION_STRENGTH"),
    ),
    "For `APARetinaNet`, with `MODEL.META_ARCHITECTURE` APARetinaNet. FocalLoss uses detectron2's "
    "`MODEL.RETINANET.FOCAL_LOSS_GAMMA` and `FOCAL_LOSS_ALPHA`. `APAFCOS` takes them as "
    "arguments in a LazyConfig.",
)
