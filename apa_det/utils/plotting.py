"""The look of the figures: colours that colour-blind people tell apart, and labels."""

from matplotlib.axes import Axes

__all__ = [
    "DPI",
    "GREY",
    "INK",
    "file_colour",
    "grid",
    "group_colour",
    "label",
]

DPI = 110
INK, GREY = "#222222", "#8a8a8a"
# Okabe and Ito's palette. The files have other colours than the usual three groups.
_GROUPS = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
_FILES = ("#4d4d4d", "#a8329e", "#e69f00", "#56b4e9", "#8c5a2b", "#000000", "#cc79a7")
_LONGEST = 34


def group_colour(index: int) -> str:
    """The colour of a frequency group; of categories without a group (-1) grey."""
    return GREY if index < 0 else _GROUPS[index % len(_GROUPS)]


def file_colour(index: int) -> str:
    """The colour of a result file."""
    return _FILES[index % len(_FILES)]


def label(text: str) -> str:
    """Text as matplotlib takes it literally, not too long."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 + 1 :]}"
    return " " * text.startswith("_") + text.replace("$", r"\$")


def grid(axis: Axes, which: str = "both") -> None:
    axis.grid(True, axis=which, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
