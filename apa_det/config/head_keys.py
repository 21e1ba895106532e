"""The config keys of box head and mask head."""

from . import places
from .key import Key, Section
from .kinds import (
    Kind,
    ascending,
    boolean,
    either,
    list_of,
    name_in,
    number,
    one_of,
    optional,
    range_pair,
)

_activation = name_in("apa_det.layers:ACTIVATION_REGISTRY")
_class_weights = either(
    list_of(number(">= 0")),
    Kind("a .json file", lambda value: isinstance(value, str) and value.endswith(".json")),
    one_of("inverse", "sqrt_inverse", "effective_number", None),
)

BOX_HEAD = Section(
    "Box head",
    places.PREDICTOR,
    (
        Key(
            "MODEL.ROI_BOX_HEAD.ACTIVATION",
            "relu",
            _activation,
            "Activation of the layers of the box head.",
            places.BOX_HEAD,
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.INIT",
            "detectron2",
            one_of("detectron2", "xavier", "torch"),
            "Initialization: detectron2; xavier (uniform, for the FCs, as mmdetection's default) "
            "or torch (the default of nn.Linear, for the FCs and the box regression, as published "
            "for LVIS).",
            places.BOX_HEAD,
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.GATE",
            "none",
            one_of("none", "roi", "fc", "roi_fc"),
            "SE gates of the box head: roi (on the RoI features, before the FCs), fc (on the "
            "output of the last FC) or roi_fc (both).",
            places.BOX_HEAD,
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CLASS_SCORE",
            "",
            one_of("", "softmax", "sigmoid", "gumbel", "apa"),
            "Class score. gumbel: APA with λ → 0, κ = 1. apa: learned λ and κ. Empty: as in "
            "detectron2, sigmoid if `USE_SIGMOID_CE`, else softmax.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.BACKGROUND_OUTPUT",
            True,
            boolean,
            "For sigmoid. True: K + 1 outputs, as in detectron2, which does not use that of the "
            "background. False: K outputs, as in mmdetection.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.SCORE_PER_CLASS",
            False,
            boolean,
            "For apa. True: one λ and κ per class. False: one pair for all classes.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.SCORE_LAMBDA_RANGE",
            [1.0, 1.0],
            range_pair(">= 0"),
            "For apa: uniform distribution that initializes λ. λ = κ = 1 is the sigmoid.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.SCORE_KAPPA_RANGE",
            [1.0, 1.0],
            range_pair("> 0"),
            "For apa: uniform distribution that initializes κ.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.SCORE_PRIOR",
            0.01,
            number("in (0, 1)"),
            "For gumbel and apa: initial score of every class, which sets the bias of the "
            "classifier.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.PREDICTOR",
            "linear",
            one_of("linear", "normed", "wrapped_cauchy"),
            "Classifier. normed: cosine similarity times a temperature.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.PREDICTOR_TEMPERATURE",
            20.0,
            number("> 0"),
            "For normed: the temperature, or its initial value if it is learned.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.PREDICTOR_LEARN_TEMPERATURE",
            False,
            boolean,
            "For normed: learn the temperature.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.PREDICTOR_WEIGHT_INIT",
            None,
            optional(number()),
            "Constant that initializes the weights of the classifier. None: they are drawn from a "
            "normal distribution.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.PREDICTOR_BIAS_INIT",
            None,
            optional(number()),
            "Constant that initializes the biases of the classifier. None: they are 0, or set by "
            "`SCORE_PRIOR`.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.LOGIT_CLAMP",
            0.0,
            number(">= 0"),
            "Clamp the logits to [−`LOGIT_CLAMP`, `LOGIT_CLAMP`] in training. 0: no clamp.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CLASS_LOSS",
            "",
            name_in("apa_det.modeling:BOX_CLASS_LOSS_REGISTRY", ""),
            "Loss of the class scores. For softmax: CrossEntropy, BalancedSoftmax, SeesawLoss or "
            "BalancedGroupSoftmax. For sigmoid, gumbel and apa: CrossEntropy, BalancedSoftmax, "
            "FocalLoss, DropLoss, EqualizationLoss, EqualizationLossV2 or FederatedLoss. For "
            "sigmoid: EffectiveClassMarginLoss. Or a custom loss. Empty: DropLoss if "
            "`USE_DROP_LOSS`, FederatedLoss if `USE_FED_LOSS`, "
            "else CrossEntropy.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS",
            None,
            _class_weights,
            "For CrossEntropy and FocalLoss: weight of each class, from the class frequency "
            "(inverse, sqrt_inverse or effective_number), as a list of one weight per class, or as "
            'a file `{"class": weight, ...}`. None: all weights are 1.',
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS_BETA",
            0.999,
            number("in [0, 1)"),
            "For effective_number: β. 0: all weights are equal. β → 1: the inverse frequency.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CLASS_COUNT",
            "image_count",
            one_of("image_count", "instance_count"),
            "Class frequency for `CLASS_WEIGHTS`, BalancedSoftmax, BalancedGroupSoftmax and "
            "EffectiveClassMarginLoss: the number of training images with the class, or of "
            "instances. The other losses use image_count.",
        ),
        Key("MODEL.ROI_BOX_HEAD.FOCAL_LOSS_GAMMA", 2.0, number(">= 0"), "FocalLoss: γ."),
        Key(
            "MODEL.ROI_BOX_HEAD.FOCAL_LOSS_ALPHA",
            0.25,
            number("<= 1"),
            "FocalLoss: the weight α of positives; negatives get 1 − α. α < 0: no weighting.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS",
            False,
            boolean,
            "True: the same as `CLASS_LOSS` DropLoss.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD",
            0.0011,
            number(">= 0"),
            "DropLoss drops negatives of scarce classes: those with instances in less than this "
            "fraction of the annotated training images.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_THRESHOLD",
            1.76e-3,
            number(">= 0"),
            "EqualizationLoss: foreground proposals are no negatives for classes with instances in "
            "less than this fraction of the annotated training images.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_GAMMA",
            12.0,
            number(">= 0"),
            "EqualizationLossV2: γ of the mapping from gradient ratios to weights.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_MU",
            0.8,
            number(),
            "EqualizationLossV2: μ of the mapping.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_V2_ALPHA",
            4.0,
            number(">= 0"),
            "EqualizationLossV2: α of the mapping.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.SEESAW_LOSS_P",
            0.8,
            number(">= 0"),
            "SeesawLoss: exponent p of the mitigation factor.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.SEESAW_LOSS_Q",
            2.0,
            number(">= 0"),
            "SeesawLoss: exponent q of the compensation factor.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.BALANCED_SOFTMAX_TAU",
            1.0,
            number(">= 0"),
            "BalancedSoftmax: τ times the log prior is added to the logits in training.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.EFFECTIVE_MARGIN_BACKGROUND_RATIO",
            6.3313,
            number("> 0"),
            "EffectiveClassMarginLoss: background proposals per foreground proposal. The default "
            "is the published ratio of Mask R-CNN on LVIS.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_BOUNDARIES",
            [10, 100, 1000],
            ascending(number(">= 0"), strictly=True),
            "BalancedGroupSoftmax: class frequencies at which the next group starts.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_OTHERS_RATIO",
            8.0,
            number(">= 0"),
            "BalancedGroupSoftmax: maximum number of proposals of other groups sampled per "
            "proposal of a group.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CALIBRATION",
            "",
            name_in("apa_det.modeling:CALIBRATION_REGISTRY", ""),
            "Post-hoc calibration of the class scores, in inference only: NorCal or "
            "LogitAdjustment (by the image counts of `DATASETS.TRAIN`), FRACAL (by the image "
            "counts, and by how evenly the boxes of a class spread over the images) or TauNorm "
            "(for the linear `PREDICTOR`). Empty: none.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH",
            0.0,
            number(">= 0"),
            "γ of NorCal, τ of LogitAdjustment and TauNorm, or strength of FRACAL (1: as "
            "published). 0: no effect. `apa-det calibrate` fits it on part of the training set.",
        ),
    ),
    "For `APAFastRCNNConvFCHead`, and for its predictor in `APAROIHeads` and `APACascadeROIHeads`.",
)

MATCHING = Section(
    "Matching of boxes to ground truth in training",
    places.ROI_HEADS,
    (
        Key(
            "MODEL.RPN.LOW_QUALITY_IOU",
            None,
            optional(number("in (0, 1]")),
            "Low-quality matches as in mmdetection: each ground truth box also gets the boxes that "
            "overlap most with it, if their IoU is at least this value, even if another ground "
            "truth box overlaps more. None: detectron2's rule. Set `MODEL.PROPOSAL_GENERATOR.NAME` "
            "to APARPN.",
            places.RPN,
        ),
        Key(
            "MODEL.ROI_HEADS.LOW_QUALITY_IOU",
            None,
            optional(number("in (0, 1]")),
            "The same in APAROIHeads. None: no low-quality matches, as in detectron2.",
        ),
        Key(
            "MODEL.ROI_HEADS.JITTER_REPEATED_BOXES",
            0.0,
            number("in [0, 1)"),
            "APAROIHeads and APACascadeROIHeads: match proposals to jittered copies of ground "
            "truth boxes that occur several times in an image. Their coordinates are multiplied by "
            "factors in 1 ± `JITTER_REPEATED_BOXES`. 0: no jitter.",
        ),
    ),
)

CASCADE = Section(
    "Cascade R-CNN",
    places.CASCADE,
    (
        Key(
            "MODEL.ROI_BOX_CASCADE_HEAD.SCORE_AVERAGE",
            "probabilities",
            one_of("probabilities", "logits"),
            "What is averaged over the stages in inference: probabilities, or logits, as in "
            "mmdetection.",
        ),
        Key(
            "MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS",
            [],
            list_of(number(">= 0")),
            "Loss weight of each stage; the features then get the whole gradient. Empty: all "
            "weights are 1, and the features get 1 / number of stages of the gradient, as in "
            "detectron2.",
        ),
        Key(
            "MODEL.ROI_BOX_CASCADE_HEAD.MASK_HEAD_PER_STAGE",
            False,
            boolean,
            "A mask head for each stage, as in mmdetection. False: one for the proposals of the "
            "RPN.",
        ),
    ),
    "For `APACascadeROIHeads`.",
)

MASK_HEAD = Section(
    "Mask head",
    places.MASK_HEAD,
    (
        Key(
            "MODEL.ROI_MASK_HEAD.ACTIVATION",
            "relu",
            _activation,
            "Activation of the layers of the mask head.",
        ),
        Key(
            "MODEL.ROI_MASK_HEAD.UPSAMPLE",
            "deconv",
            one_of("deconv", "carafe"),
            "Upsampling layer: deconv (followed by `ACTIVATION`) or carafe (no activation).",
        ),
        Key(
            "MODEL.ROI_MASK_HEAD.PREDICTOR",
            "conv",
            one_of("conv", "normed"),
            "Layer that predicts the mask logits. normed: cosine similarity times a temperature.",
        ),
        Key(
            "MODEL.ROI_MASK_HEAD.PREDICTOR_TEMPERATURE",
            20.0,
            number("> 0"),
            "For normed: the temperature, or its initial value if it is learned.",
        ),
        Key(
            "MODEL.ROI_MASK_HEAD.PREDICTOR_LEARN_TEMPERATURE",
            False,
            boolean,
            "For normed: learn the temperature.",
        ),
        Key(
            "MODEL.ROI_MASK_HEAD.THRESHOLD",
            0.5,
            number("in (0, 1)"),
            "Probability from which a pixel belongs to the predicted mask.",
        ),
    ),
    "For `APAMaskRCNNConvUpsampleHead`.",
)
