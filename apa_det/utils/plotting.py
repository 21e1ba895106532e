"""Shared style of all figures: one palette with one meaning per color, labels and grids.

The colors of groups are dark (white text on them has a contrast of at least 4.5), those of
outcomes are bright. Colors of files differ from both.
"""

import colorsys

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

DPI = 110
INK, GREY = "#222222", "#737373"
TRUE_POSITIVE_COLOR, MISSED_COLOR, FALSE_POSITIVE_COLOR = "#35d0e8", "#ff3d9a", "#ffc400"
_GROUPS = ("#c44900", "#00805c", "#0068b0", "#ad3f7d", "#7a6a00", "#35496b")
_FILES = ("#4d4d4d", "#9161e6", "#c49a5a", "#5b2d00", "#9fb4c8", "#ff9d9d", "#000000")
_MAX_LABEL = 34  # characters
_GOLDEN = 0.618034  # neighboring indices get distant hues


def group_color(index: int) -> str:
    """Return the color of a frequency group; grey for -1, no group."""
    return GREY if index < 0 else _GROUPS[index % len(_GROUPS)]


def file_color(index: int) -> str:
    """Return the color of a result file, or of another series: neither a group nor an outcome."""
    return _FILES[index % len(_FILES)]


def class_color(index: int) -> str:
    """Return the color of a class index, for images without frequency groups."""
    lightness = (0.6, 0.38, 0.78)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(_GOLDEN * index % 1, lightness, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colors, 1 to 21 (WCAG 2: text needs 4.5)."""
    low, high = sorted(map(_luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def text_color(background: str) -> str:
    """Return black or white, whichever has the higher contrast on a background: at least 4.5."""
    return max("#ffffff", "#000000", key=lambda color: contrast(color, background))


def label(text: str) -> str:
    """Shorten text, and escape what matplotlib would interpret: ``$`` and a leading ``_``."""
    if len(text) > _MAX_LABEL:
        text = f"{text[: _MAX_LABEL // 2]}…{text[-_MAX_LABEL // 2 + 1 :]}"
    return " " * text.startswith("_") + text.replace("$", r"\$")


def grid(axis: Axes, which: str = "both") -> None:
    axis.grid(True, axis=which, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _luminance(color: str) -> float:
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
