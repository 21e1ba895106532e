"""docs/config.md is up to date."""

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


def test_defaults_are_not_shared():
    first, second = get_cfg(), get_cfg()
    add_apa_config(first), add_apa_config(second)
    first.SOLVER.TRAINED.append("x")
    first.SOLVER.EMA.DECAY = 0.5
    assert second.SOLVER.TRAINED == [] and second.SOLVER.EMA.DECAY == 0.999
