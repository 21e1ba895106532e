"""Shared style of all figures: a color-blind safe palette, labels and grids."""

from matplotlib.axes import Axes

DPI = 110
INK, GREY = "#222222", "#8a8a8a"
# From Okabe and Ito's palette; file colors differ from those of the first three groups.
_GROUPS = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
_FILES = ("#4d4d4d", "#a8329e", "#e69f00", "#56b4e9", "#8c5a2b", "#000000", "#cc79a7")
_MAX_LABEL = 34  # characters


def group_color(index: int) -> str:
    """Return the color of a frequency group; grey for -1, no group."""
    return GREY if index < 0 else _GROUPS[index % len(_GROUPS)]


def file_color(index: int) -> str:
    """Return the color of a result file."""
    return _FILES[index % len(_FILES)]


def label(text: str) -> str:
    """Shorten text, and escape what matplotlib would interpret: ``$`` and a leading ``_``."""
    if len(text) > _MAX_LABEL:
        text = f"{text[: _MAX_LABEL // 2]}…{text[-_MAX_LABEL // 2 + 1 :]}"
    return " " * text.startswith("_") + text.replace("$", r"\$")


def grid(axis: Axes, which: str = "both") -> None:
    axis.grid(True, axis=which, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
