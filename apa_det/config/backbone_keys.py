"""The config keys of backbones, and of APA in other models."""

from . import places
from .key import Key, Section
from .kinds import boolean, integer, list_of, name_in, number, one_of, optional, range_pair, text

_activation = name_in("apa_det.layers:ACTIVATION_REGISTRY")
_gate = name_in("apa_det.layers:GATE_REGISTRY", "none")
BACKBONES = Section(
    "APA ResNet backbones",
    places.BACKBONE,
    (
        Key(
            "MODEL.APA.ACTIVATION",
            "relu",
            _activation,
            "Activation of the stem and the residual blocks.",
        ),
        Key(
            "MODEL.APA.ACTIVATION_PER_STAGE",
            [],
            list_of(_activation, 0, 5),
            "Activations of the stem, res2, res3, res4 and res5. Empty: `ACTIVATION` everywhere.",
        ),
        Key(
            "MODEL.APA.PER_CHANNEL",
            False,
            boolean,
            "True: aglu, prelu and swish learn their parameters (λ and κ, slope, β) per channel. "
            "False: per layer.",
            places.ACTIVATIONS,
        ),
        Key(
            "MODEL.APA.LAMBDA_RANGE",
            [0.0, 1.0],
            range_pair(">= 0"),
            "Uniform distribution that initializes λ of AGLU, in the backbone and in the heads.",
            places.RANGES,
        ),
        Key(
            "MODEL.APA.KAPPA_RANGE",
            [1.0, 1.3],
            range_pair(),
            "Uniform distribution that initializes κ of AGLU, in the backbone and in the heads.",
            places.RANGES,
        ),
        Key(
            "MODEL.APA.LAMBDA_MIN",
            1e-4,
            number(">= 0"),
            "Lower bound that λ is clamped to, in activations, gates and class scores.",
            places.RANGES,
        ),
        Key(
            "MODEL.APA.GATE",
            "none",
            _gate,
            "Attention gate at the end of the residual branch of each block: se (of channels), "
            "plain_se (the original SE: no LayerNorm, no dropout, sigmoid), cbam (of channels, "
            "then of positions) or spatial (of positions).",
        ),
        Key(
            "MODEL.APA.GATE_PER_STAGE",
            [],
            list_of(_gate, 0, 4),
            "Gates of res2, res3, res4 and res5. Empty: `GATE` everywhere.",
        ),
        Key(
            "MODEL.APA.GATE_ACTIVATION",
            "apa",
            one_of("apa", "sigmoid"),
            "Activation of the gates of the backbone and of the box head, as all following keys "
            "`GATE_*`.",
            places.GATES,
        ),
        Key(
            "MODEL.APA.GATE_SPATIAL_ACTIVATION",
            "",
            one_of("", "apa", "sigmoid"),
            "Activation of the gates of positions of cbam and spatial. Empty: `GATE_ACTIVATION`.",
        ),
        Key(
            "MODEL.APA.GATE_PER_CHANNEL",
            False,
            boolean,
            "True: the gates learn λ and κ per channel. False: per layer.",
            places.GATES,
        ),
        Key(
            "MODEL.APA.GATE_REDUCTION",
            16,
            integer(">= 1"),
            "The hidden layer of a gate has C // `GATE_REDUCTION` channels, and at least one.",
            places.GATES,
        ),
        Key(
            "MODEL.APA.GATE_DROPOUT",
            0.1,
            number("in [0, 1)"),
            "Dropout probability before the activation of a gate.",
            places.GATES,
        ),
        Key(
            "MODEL.APA.GATE_TOP_SHARE",
            1.0,
            number("in (0, 1]"),
            "Fraction of the channels of each image that pass a gate: those with the largest gate "
            "values. The others are set to 0. 1: all channels pass.",
            places.GATES,
        ),
        Key(
            "MODEL.APA.GATE_LAMBDA_RANGE",
            [0.0, 1.0],
            range_pair(">= 0"),
            "Uniform distribution that initializes λ of the gates.",
            places.RANGES,
        ),
        Key(
            "MODEL.APA.GATE_KAPPA_RANGE",
            [-1.0, 0.0],
            range_pair(),
            "Uniform distribution that initializes κ of the gates.",
            places.RANGES,
        ),
        Key(
            "MODEL.APA.FUSE",
            True,
            boolean,
            "Compute norm, gate, shortcut and AGLU in one pass wherever the norm uses its running "
            "statistics. The results are equal up to rounding.",
        ),
        Key(
            "MODEL.APA.WEIGHT_DECAY",
            None,
            optional(number(">= 0")),
            "Weight decay of all λ and κ. None: `SOLVER.WEIGHT_DECAY`.",
            places.PARAM_GROUPS,
        ),
        Key(
            "MODEL.APA.LR_FACTOR",
            1.0,
            number(">= 0"),
            "Learning rate of all λ and κ, as a multiple of `SOLVER.BASE_LR`.",
            places.PARAM_GROUPS,
        ),
        Key(
            "MODEL.APA.LOG_PERIOD",
            100,
            integer(">= 0"),
            "Write all λ and κ to the event storage every this many iterations. 0: never.",
            places.LOG,
        ),
        Key(
            "MODEL.FPN.TOP_BLOCK_IN_FEATURE",
            "res5",
            one_of("res5", "p5"),
            "Feature that P6 and P7 are computed from: res5 as in RetinaNet, or p5 as in FCOS and "
            "CenterNet2.",
            places.LAST_LEVEL,
        ),
    ),
    "For `build_apa_resnet_backbone`, `build_apa_resnet_fpn_backbone` and "
    "`build_apa_retinanet_resnet_fpn_backbone`.",
)

INJECTION = Section(
    "APA in any model",
    places.INJECT,
    (
        Key(
            "MODEL.APA.INJECT.ENABLED",
            False,
            boolean,
            "Inject into the model of `MODEL.META_ARCHITECTURE`.",
            places.BUILD_MODEL,
        ),
        Key(
            "MODEL.APA.INJECT.META_ARCHITECTURE",
            "GeneralizedRCNN",
            name_in("detectron2.modeling:META_ARCH_REGISTRY", without="APAInjected"),
            "With `MODEL.META_ARCHITECTURE` APAInjected: the meta-architecture of the model to "
            "inject into.",
            places.INJECTED,
        ),
        Key(
            "MODEL.APA.INJECT.NAMES",
            ["*"],
            list_of(text),
            "Name patterns of the activations to replace, e.g. `backbone.*` or "
            "`roi_heads.box_head.*`. A pattern that starts with `!` excludes names, e.g. "
            "`!backbone.top_block.*`.",
        ),
        Key(
            "MODEL.APA.INJECT.TYPES",
            [],
            list_of(name_in("apa_det.injection.activation_kinds:KINDS")),
            "Types of the activations to replace. AGLU replaces relu, leaky_relu, relu6, elu, "
            "celu, selu, gelu, silu, mish and hardswish; APA replaces sigmoid (modules only) and "
            "hardsigmoid. Empty: all of these. Calls of torch.sigmoid may compute gates or scores, "
            "so they are replaced only if functional_sigmoid is listed.",
        ),
        Key(
            "MODEL.APA.INJECT.LIKE",
            "",
            one_of("", "replaced"),
            "replaced: initialize λ and κ to the best approximation of the replaced activation, so "
            "that pretrained weights stay usable. Empty: draw them from `LAMBDA_RANGE` and "
            "`KAPPA_RANGE` for AGLU, from `GATE_LAMBDA_RANGE` and `GATE_KAPPA_RANGE` for APA.",
        ),
        Key(
            "MODEL.APA.INJECT.PARAMETERS",
            "shared",
            one_of("shared", "per_channel", "tied"),
            "shared: one λ and κ per replaced activation. per_channel: one pair per channel. tied: "
            "one pair for all AGLUs of the model and one for all APA gates.",
        ),
    ),
    "With `MODEL.APA.INJECT.ENABLED`, `apa_det.build_model(cfg)` calls `apa_det.inject`, and "
    "`MODEL.META_ARCHITECTURE` stays. For trainers that cannot be changed, "
    "`MODEL.META_ARCHITECTURE APAInjected` does it without `ENABLED`: see "
    "[apa.md](apa.md#from-a-config).",
)
