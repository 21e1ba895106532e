"""The palette of the figures."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from apa_det.utils import plotting
from apa_det.utils.plotting import class_color, contrast, file_color, group_color, text_color

OUTCOMES = plotting.TRUE_POSITIVE_COLOR, plotting.MISSED_COLOR, plotting.FALSE_POSITIVE_COLOR
GROUPS = [group_color(i) for i in range(6)]
FILES = [file_color(i) for i in range(7)]


def oklab(color):
    """Perceptual coordinates (Ottosson 2020)."""
    c = np.array(to_rgb(color))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return to_lab @ np.cbrt(to_lms @ linear)


def test_no_color_has_two_meanings():
    for first, second in combinations([*GROUPS, *FILES, *OUTCOMES, plotting.GREY], 2):
        assert np.linalg.norm(oklab(first) - oklab(second)) > 0.06, (first, second)
    for group in GROUPS[:3]:
        for outcome in OUTCOMES:
            assert np.linalg.norm(oklab(group) - oklab(outcome)) > 0.15


def test_text_colors():
    """Groups are named in their colors on white; grey is a color of text."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert all(contrast(color, "#ffffff") >= 4.5 for color in (*GROUPS, plotting.GREY))
    classes = [class_color(i) for i in range(300)]
    for color in (*GROUPS, *FILES, *OUTCOMES, *classes):
        assert contrast(color, text_color(color)) >= 4.5
    assert [text_color(color) for color in GROUPS[:3]] == ["#ffffff"] * 3
    assert [text_color(color) for color in OUTCOMES] == ["#000000"] * 3


def test_class_colors_are_stable_and_differ():
    assert class_color(7) == class_color(7) == "#" + class_color(7)[1:]
    assert len({class_color(i) for i in range(200)}) == 200
    for first, second in combinations([class_color(i) for i in range(12)], 2):
        assert np.linalg.norm(oklab(first) - oklab(second)) > 0.08
