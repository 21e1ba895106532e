"""The config keys of post-processing: what becomes of the scored boxes in inference."""

from . import places
from .key import Key, Section
from .kinds import boolean, number, one_of, text

INFERENCE = Section(
    "Post-processing in inference",
    places.POSTPROCESSING,
    (
        Key(
            "TEST.SOFT_NMS.METHOD",
            "",
            one_of("", "linear", "gaussian"),
            "Soft-NMS instead of NMS: overlapping boxes of a class get lower scores, by a factor "
            "of 1 − IoU from `NMS_THRESH_TEST` on (linear) or e^(−IoU² / `SIGMA`) (gaussian). "
            "Boxes whose score falls to the score threshold are dropped. Empty: NMS.",
        ),
        Key(
            "TEST.SOFT_NMS.SIGMA",
            0.5,
            number("> 0"),
            "σ of gaussian.",
        ),
        Key(
            "TEST.CLASS_AGNOSTIC_NMS",
            False,
            boolean,
            "NMS or soft-NMS among the boxes of all classes, instead of within each class.",
        ),
        Key(
            "TEST.MASK_SCORE",
            False,
            boolean,
            "Multiply the score of each detection by its maskness: the mean probability of the "
            "pixels in its mask. Needs a mask head.",
            places.MASK_SCORE,
        ),
        Key(
            "TEST.SCORE_THRESH_PER_GROUP",
            "",
            text,
            "Score thresholds of frequency groups, e.g. `r:0.1,c:0.2,f:0.4`, or of classes in a "
            '.json file `{"class": threshold, ...}`. They replace `SCORE_THRESH_TEST`, which '
            "classes that a file omits keep. A number without a group applies to all other "
            "groups. The groups are those of `TEST.FREQUENCY_GROUPS` and `TEST.COUNT_FROM`, else "
            "those of the first of `DATASETS.TRAIN` and `DATASETS.TEST` that can be read. "
            "`apa-det calibrate --thresholds` chooses them. Empty: none.",
        ),
    ),
    "For `APAROIHeads`, `APACascadeROIHeads`, `APARetinaNet` and `APAFCOS`.",
)
