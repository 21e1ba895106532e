"""The table of all config keys of apa_det, and their defaults."""

import copy

from detectron2.config import CfgNode

from . import places
from .backbone_keys import BACKBONES, INJECTION
from .data_keys import DATA, EVALUATION
from .dense_keys import RETINANET
from .head_keys import BOX_HEAD, CASCADE, MASK_HEAD, MATCHING
from .inference_keys import INFERENCE
from .key import Key, Section
from .kinds import list_of, text
from .replay_keys import REPLAY
from .training_keys import TRAINING, WEIGHTS

GENERAL = Section(
    "General",
    places.NOWHERE,
    (
        Key(
            "IMPORTS",
            [],
            list_of(text),
            "Modules given by `--import` of the commands, which register components. Recorded here "
            "for information, never imported from here.",
        ),
    ),
)
SECTIONS = [
    *(GENERAL, BACKBONES, INJECTION, BOX_HEAD, REPLAY, MATCHING, CASCADE, MASK_HEAD, RETINANET),
    *(WEIGHTS, TRAINING, DATA, EVALUATION, INFERENCE),
]
KEYS = {
    key.name: key._replace(place=key.place or section.place)
    for section in SECTIONS
    for key in section.keys
}


def add_apa_config(cfg: CfgNode) -> None:
    """Add all keys of apa_det to a detectron2 config. The defaults change nothing.

    A key that the config has keeps its value: call it before or after the functions that add the
    keys of other projects, and as often as you like.
    """
    for key in KEYS.values():
        *nodes, name = key.name.split(".")
        node = cfg
        for part in nodes:
            if part not in node:
                node[part] = CfgNode()
            node = node[part]
        if name not in node:
            node[name] = copy.deepcopy(key.default)
