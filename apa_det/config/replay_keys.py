"""The config keys of feature replay."""

from . import places
from .key import Key, Section
from .kinds import integer, list_of, number, one_of

REPLAY = Section(
    "Replay of features of scarce classes",
    places.TRAINER,
    (
        Key(
            "MODEL.ROI_BOX_HEAD.REPLAY.SHARE",
            0.0,
            number("in [0, 1]"),
            "Features to replay per sampled proposal, as a fraction: 0.1 adds 51 to the class loss "
            "of 512 proposals. They come from a memory of scarce classes, all of which are equally "
            "likely. 0: no replay.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.REPLAY.NEIGHBORS",
            5,
            integer(">= 0"),
            "SMOTE: a replayed feature lies between a feature and one of this many nearest "
            "neighbors of its class. 0: features are replayed as they are.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.REPLAY.MEMORY",
            20,
            integer(">= 1"),
            "Features to keep of each scarce class, the newest ones, in each process. A checkpoint "
            "holds the memories of all processes: at most processes × scarce classes × `MEMORY` × "
            "`FC_DIM` numbers, 65 MB for a process on LVIS in float32.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.REPLAY.GROUPS",
            ["r", "c"],
            list_of(one_of("r", "c", "f")),
            "Frequency groups of the scarce classes.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.REPLAY.MAX_COUNT",
            0,
            integer(">= 0"),
            "The scarce classes are those in at most this many training images, instead of those "
            "of `GROUPS`. 0: those of `GROUPS`.",
        ),
        Key(
            "MODEL.ROI_BOX_HEAD.REPLAY.START_ITER",
            0,
            integer(">= 0"),
            "Iteration from which features are remembered and replayed.",
        ),
    ),
    "For `APAROIHeads` and `APACascadeROIHeads`, where each stage has its own memory.",
)
