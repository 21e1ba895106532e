"""λ and κ over the course of a training, from its ``metrics.json``."""

import json
import os
import re
from collections.abc import Mapping

from detectron2.utils.file_io import PathManager
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from ..activation import AGLU, APA
from ..utils.plotting import DPI, INK, grid
from .inputs import ACTIVATION, CLASS_SCORE, GATE
from .layer_figures import place

__all__ = ["draw_course", "layer_kinds", "read_course"]

_KEY = re.compile(r"apa/(?P<layer>.+?)/(?P<symbol>lambda|kappa)(/mean)?")
_SYMBOLS = {"lambda": "λ", "kappa": "κ"}
_TITLES = {ACTIVATION: "activations", GATE: "gates", CLASS_SCORE: "class score"}
_MANY = 24

Course = dict[str, dict[str, list[tuple[int, float]]]]


def read_course(metrics_file: str | os.PathLike) -> Course:
    """λ and κ of every layer, as :class:`apa_det.engine.LambdaKappaWriter` wrote them.

    Where a training was resumed from an earlier iteration, or began anew in the same folder, what
    it wrote takes the place of what was there. A line that is cut off is left out.

    Args:
        metrics_file: the ``metrics.json`` of a training.

    Returns:
        ``{layer: {"lambda": [(iteration, value), …], "kappa": …}}``, of layers with a pair for each
        channel the means. Layers by name, numbers within in their order, and the stem first.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not PathManager.isfile(str(metrics_file)):
        raise FileNotFoundError(f"There is no file {metrics_file}.")
    written: list[tuple[int, dict[str, float]]] = []
    with PathManager.open(str(metrics_file)) as file:
        for line in file:
            if '"apa/' not in line:
                continue
            try:
                scalars = json.loads(line)
            except json.JSONDecodeError:
                continue
            while written and written[-1][0] >= scalars["iteration"]:
                written.pop()
            written.append((scalars["iteration"], scalars))
    course: Course = {}
    for iteration, scalars in written:
        for key, value in scalars.items():
            match = _KEY.fullmatch(key)
            if match:
                symbols = course.setdefault(match["layer"], {"lambda": [], "kappa": []})
                symbols[match["symbol"]].append((iteration, value))
    return dict(sorted(course.items(), key=lambda item: _natural(item[0])))


def draw_course(
    course: Course, path: str | os.PathLike, kinds: Mapping[str, str] | None = None
) -> None:
    """Draw λ and κ of every layer over the iterations, coloured by depth, activations and gates
    apart; where they are many, the mean of each part of the network is bold.

    Args:
        course: as :func:`read_course` gives it.
        path: the PNG to write.
        kinds: the kind of each layer, by depth. None: by their names, in the order of the course;
            those named ``gate`` or ``score`` are no activations.

    Raises:
        ValueError: the course is empty.
    """
    if not course:
        raise ValueError(
            "There is no λ and κ to draw: metrics.json holds them where the model has APA or AGLU, "
            "and MODEL.APA.LOG_PERIOD (train.apa_log_period) is above 0."
        )
    if kinds is None:
        kinds = {name: _kind_by_name(name) for name in course}
    names = [name for name in kinds if name in course]
    columns = [kind for kind in _TITLES if any(kinds[name] == kind for name in names)]
    colours = _colours(names)
    figure = Figure(figsize=(1.6 + 4.6 * len(columns), 7), layout="constrained")
    axes = figure.subplots(2, len(columns), sharex=True, squeeze=False)
    for row, symbol in zip(axes, _SYMBOLS, strict=True):
        for axis, kind in zip(row, columns, strict=True):
            layers = {n: course[n][symbol] for n in names if kinds[n] == kind}
            _draw_layers(axis, layers, colours)
            grid(axis)
            if symbol == "lambda":
                axis.set_title(_TITLES[kind])
                _mark_limits(axis)
            else:
                axis.set_xlabel("iteration")
                axis.xaxis.set_major_locator(MaxNLocator(4))
                axis.xaxis.set_major_formatter("{x:,.0f}")
        row[0].set_ylabel(_SYMBOLS[symbol], fontsize=14)
    _depth_bar(figure, axes, colours)
    with PathManager.open(str(path), "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """The kind of each APA and AGLU of a model: ACTIVATION, GATE or CLASS_SCORE, by its name."""
    modules = model.named_modules()
    return {name: _kind(name, m) for name, m in modules if isinstance(m, APA)}


def _kind(name: str, module: nn.Module) -> str:
    if isinstance(module, AGLU):
        return ACTIVATION
    return CLASS_SCORE if _kind_by_name(name) == CLASS_SCORE else GATE


def _kind_by_name(name: str) -> str:
    if name.endswith(".score"):
        return CLASS_SCORE
    return GATE if "gate" in name else ACTIVATION


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"\d+|[^\d.]+", name)
    return [(p != "stem", int(p) if p.isdecimal() else -1, p) for p in parts]


def _colours(names: list[str]) -> dict[str, tuple]:
    """The colour of each layer, by its depth."""
    return {
        name: colormaps["viridis"](0.92 * i / max(len(names) - 1, 1))  # the last ones are too light
        for i, name in enumerate(names)
    }


def _draw_layers(
    axis: Axes, layers: dict[str, list[tuple[int, float]]], colours: dict[str, tuple]
) -> None:
    """A line for each layer; where they are many, thin ones, and the mean of each part bold."""
    many = len(layers) > _MANY
    places: dict[str, list[str]] = {}
    for name, points in layers.items():
        style = {"linewidth": 0.6, "alpha": 0.4} if many else {"linewidth": 1.5}
        _draw_line(axis, points, colours[name], **style)
        places.setdefault(place(name), []).append(name)
    for names in places.values() if many else ():
        values: dict[int, list[float]] = {}
        for iteration, value in (point for name in names for point in layers[name]):
            values.setdefault(iteration, []).append(value)
        means = [(iteration, sum(v) / len(v)) for iteration, v in sorted(values.items())]
        _draw_line(axis, means, colours[names[len(names) // 2]], linewidth=2.6)


def _draw_line(axis: Axes, points: list[tuple[int, float]], colour: tuple, **style) -> None:
    marker = "o" if len(points) == 1 else ""
    axis.plot(*zip(*points, strict=True), color=colour, marker=marker, **style)


def _mark_limits(axis: Axes) -> None:
    for y, text in ((1, "λ = 1: logistic"), (0, "λ → 0: Gumbel")):
        axis.axhline(y, color=INK, linewidth=1, linestyle=":")
        axis.annotate(
            text,
            (1, y),
            (-2, 2),
            xycoords=axis.get_yaxis_transform(),
            textcoords="offset points",
            color=INK,
            ha="right",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
        )


def _depth_bar(figure: Figure, axes, colours: dict[str, tuple]) -> None:
    """The colours by depth, with the part of the network that each is of."""
    number = len(colours)
    mappable = ScalarMappable(
        BoundaryNorm(range(number + 1), number), ListedColormap(list(colours.values()))
    )
    bar = figure.colorbar(mappable, ax=axes, aspect=40, pad=0.01)
    depths: dict[str, list[int]] = {}
    for depth, name in enumerate(colours):
        depths.setdefault(place(name), []).append(depth)
    bar.set_ticks([sum(d) / len(d) + 0.5 for d in depths.values()], labels=list(depths))
    bar.minorticks_off()
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0)
