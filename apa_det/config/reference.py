"""The documentation of all config keys: ``python -m apa_det.config.reference docs/config.md``."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .defaults import KEYS, SECTIONS
from .detectron2_keys import DETECTRON2_KINDS
from .lazy_keys import LAZY_KEYS

_START = """\
# Config keys

<!-- Written from apa_det/config by: python -m apa_det.config.reference docs/config.md -->

`apa_det.add_apa_config(cfg)` adds these keys to a detectron2 config. Their defaults change nothing:
the model and its training are then detectron2's. A key that the config already has keeps its value.

The commands and `apa_det.engine.Trainer` honor all keys. In the training of another project, a key
acts in the functions and classes that its last column names, see
[which keys act where](other-projects.md#which-keys-act-where). After `apa_det.setup(cfg)`, a
warning at the first step lists the keys that were set and do not act.

All commands check all values before they start, also those of detectron2's own keys and of
LazyConfigs. A value that is not allowed ends the command with one sentence, e.g. "SOLVER.EMA.DECAY
must be a number in [0, 1); got 1.5." A list may also be a tuple. Names of components are checked
after `--import` has registered those of the user.
"""
_DETECTRON2 = """
## Keys of detectron2

Other keys of detectron2 must have the type of their default.
"""
_LAZY = """
## Keys of LazyConfigs

Most have the allowed values of a yaml key. The arguments of layers are checked when the model is
built. In other scripts, the keys of `train` that detectron2 lacks do not act, and
`dataloader.lvis_format` and `dataloader.allow_outside_root` act in `apa_det.setup`.
"""


def render() -> str:
    """Return the page in markdown."""
    parts = [_START]
    for section in SECTIONS:
        parts.append(f"\n## {section.title}\n")
        parts.append(f"\n{section.introduction}\n" if section.introduction else "")
        rows = [
            (
                f"`{key.name}`",
                f"`{_shown(key.default)}`",
                key.kind.described(),
                key.description,
                KEYS[key.name].place.text,
            )
            for key in section.keys
        ]
        parts.append(_table(("key", "default", "allowed values", "description", "acts in"), rows))
    parts.append(_DETECTRON2)
    rows = [(f"`{name}`", kind.described()) for name, kind in DETECTRON2_KINDS.items()]
    parts.append(_table(("key", "allowed values"), rows))
    parts.append(_LAZY)
    rows = [
        (f"`{name}`", f"as `{kind}`" if isinstance(kind, str) else kind.described())
        for name, kind in LAZY_KEYS.items()
    ]
    parts.append(_table(("key", "allowed values"), rows))
    return "".join(parts)


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else repr(value).replace("''", '""')


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
