"""docs/config.md is up to date."""

import pkgutil
from pathlib import Path

from detectron2.config import get_cfg

from apa_det.config import add_apa_config
from apa_det.config.defaults import KEYS
from apa_det.config.reference import render

PAGE = Path(__file__).parents[2] / "docs/config.md"


def test_page_is_up_to_date():
    advice = "Run: python -m apa_det.config.reference docs/config.md"
    assert PAGE.read_text(encoding="utf-8") == render(), advice


def test_each_key_is_described():
    for key in KEYS.values():
        assert f"| `{key.name}` |" in render()
        assert key.description.endswith("."), key.name
        assert key.kind.accepts(key.default), key.name


def test_each_key_says_where_it_acts():
    for key in KEYS.values():
        assert key.place.text
        for name in key.place.classes + key.place.others:
            assert isinstance(pkgutil.resolve_name(name), type), name


def test_existing_keys_keep_their_values():
    """Before and after the keys of another project, and twice."""

    def add_their_config(cfg):
        cfg.SOLVER.OPTIMIZER = "ADAMW"
        cfg.MODEL.ROI_MASK_HEAD.UPSAMPLE = "theirs"

    for functions in (
        [add_their_config, add_apa_config],
        [add_apa_config, add_their_config],
        [add_their_config, add_apa_config, add_apa_config],
    ):
        cfg = get_cfg()
        for function in functions:
            function(cfg)
        assert cfg.SOLVER.OPTIMIZER == "ADAMW" and cfg.MODEL.ROI_MASK_HEAD.UPSAMPLE == "theirs"
        assert cfg.MODEL.APA.ACTIVATION == "relu" and cfg.SOLVER.ACCUMULATE == 1
    cfg.MODEL.APA.ACTIVATION = "aglu"
    cfg.freeze()
    add_apa_config(cfg)
    assert cfg.MODEL.APA.ACTIVATION == "aglu" and cfg.is_frozen()


def test_defaults_are_not_shared():
    first, second = get_cfg(), get_cfg()
    add_apa_config(first), add_apa_config(second)
    first.SOLVER.TRAINED.append("x")
    first.SOLVER.EMA.DECAY = 0.5
    assert second.SOLVER.TRAINED == [] and second.SOLVER.EMA.DECAY == 0.999
