"""History of λ and κ over a training, from its ``metrics.json``."""

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
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import nn

from ..activation import AGLU, APA
from ..errors import MissingFileError, UserError
from ..utils.atomic_files import open_atomic
from ..utils.plotting import DPI, INK, grid
from .inputs import ACTIVATION, CLASS_SCORE, GATE
from .layer_figures import network_part

_KEY = re.compile(r"apa/(?P<layer>.+?)/(?P<symbol>lambda|kappa)(/mean)?")
_SYMBOLS = {"lambda": "λ", "kappa": "κ"}
_TITLES = {ACTIVATION: "activations", GATE: "gates", CLASS_SCORE: "class score"}
_MANY = 24  # layers; more are drawn as thin lines with means
_FEW = 2  # points that are not connected
_THIN, _BOLD = {"linewidth": 0.6, "alpha": 0.4}, {"linewidth": 2.6}

ParameterHistory = dict[str, dict[str, list[tuple[int, float]]]]


def read_parameter_history(metrics_file: str | os.PathLike) -> ParameterHistory:
    """Read λ and κ of every layer from ``metrics.json``, as LambdaKappaWriter logs them.

    If the training was resumed from an earlier iteration or restarted in the same folder, the later
    values replace the earlier ones. Truncated lines are skipped.

    Returns:
        ``{layer: {"lambda": [(iteration, value), …], "kappa": …}}``, with channel means if λ and κ
        are per channel. Layers are in natural order of their names, the stem first.

    Raises:
        MissingFileError: the file does not exist.
    """
    if not PathManager.isfile(str(metrics_file)):
        raise MissingFileError(f"{metrics_file} does not exist.")
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
    history: ParameterHistory = {}
    for iteration, scalars in written:
        for key, value in scalars.items():
            if match := _KEY.fullmatch(key):
                symbols = history.setdefault(match["layer"], {"lambda": [], "kappa": []})
                symbols[match["symbol"]].append((iteration, value))
    return dict(sorted(history.items(), key=lambda item: _natural(item[0])))


def plot_parameter_history(
    history: ParameterHistory, path: str | os.PathLike, kinds: Mapping[str, str] | None = None
) -> None:
    """Plot λ and κ of every layer over the iterations, a column per kind, colored by depth.

    If there are many layers, bold lines show the mean of each part of the network.

    Args:
        history: from :func:`read_parameter_history`.
        path: the PNG to write.
        kinds: the kind of each layer, in order of depth. None: derived from the names, in the order
            of the history: ``*.score`` is a class score, names with ``gate`` are gates, all others
            activations.

    Raises:
        UserError: the history is empty, or the file cannot be written.
    """
    if not history:
        raise UserError(
            "metrics.json contains no λ and κ. They are logged if the model has APA or AGLU layers "
            "and MODEL.APA.LOG_PERIOD (LazyConfig: train.apa_log_period) is > 0."
        )
    if kinds is None:
        kinds = {name: _kind_by_name(name) for name in history}
    names = [name for name in kinds if name in history]
    columns = [kind for kind in _TITLES if any(kinds[name] == kind for name in names)]
    colors = _depth_colors(names)
    figure = Figure(figsize=(1.6 + 4.6 * len(columns), 7), layout="constrained")
    axes = figure.subplots(2, len(columns), sharex=True, squeeze=False)
    for row, symbol in zip(axes, _SYMBOLS, strict=True):
        for axis, kind in zip(row, columns, strict=True):
            layers = {n: history[n][symbol] for n in names if kinds[n] == kind}
            _draw_layers(axis, layers, colors)
            grid(axis)
            if symbol == "lambda":
                axis.set_title(_TITLES[kind])
                _mark_limits(axis)
            else:
                axis.set_xlabel("iteration")
                axis.xaxis.set_major_locator(MaxNLocator(4))
                axis.xaxis.set_major_formatter("{x:,.0f}")
        row[0].set_ylabel(f"{_SYMBOLS[symbol]} of the layer", fontsize=12)
    _depth_bar(figure, axes, colors)
    longest = max(len(history[name]["lambda"]) for name in names)
    many = any(sum(kinds[name] == kind for name in names) > _MANY for kind in columns)
    if many and longest > _FEW:
        handles = [
            Line2D([], [], color=INK, **_THIN, label="a layer"),
            Line2D([], [], color=INK, **_BOLD, label="mean of a part of the network"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    with open_atomic(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DPI)


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """Return the kind (ACTIVATION, GATE, CLASS_SCORE) of each APA and AGLU layer, by layer name."""
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


def _depth_colors(names: list[str]) -> dict[str, tuple]:
    """Return the color of each layer by its depth."""
    last = max(len(names) - 1, 1)
    # Beyond 0.8, viridis is too light.
    return {name: colormaps["viridis"](0.8 * i / last) for i, name in enumerate(names)}


def _draw_layers(
    axis: Axes, layers: dict[str, list[tuple[int, float]]], colors: dict[str, tuple]
) -> None:
    """Draw a line per layer; if there are many, thin lines, and bold means per network part."""
    many = len(layers) > _MANY
    parts: dict[str, list[str]] = {}
    for name, points in layers.items():
        _draw_line(axis, points, colors[name], **(_THIN if many else {"linewidth": 1.5}))
        parts.setdefault(network_part(name), []).append(name)
    for names in parts.values() if many else ():
        values: dict[int, list[float]] = {}
        for iteration, value in (point for name in names for point in layers[name]):
            values.setdefault(iteration, []).append(value)
        means = [(iteration, sum(v) / len(v)) for iteration, v in sorted(values.items())]
        _draw_line(axis, means, colors[names[len(names) // 2]], **_BOLD)


def _draw_line(axis: Axes, points: list[tuple[int, float]], color: tuple, **style) -> None:
    if len(points) <= _FEW:
        style |= {"marker": "o", "linestyle": ""}
    axis.plot(*zip(*points, strict=True), color=color, **style)


def _mark_limits(axis: Axes) -> None:
    for y, text in ((1, "λ = 1: logistic"), (0, "λ → 0: Gumbel")):
        axis.axhline(y, color=INK, linewidth=1, linestyle=":")
        where = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
        axis.annotate(text, (1, y), (-2, 2), color=INK, ha="right", fontsize=8, bbox=box, **where)


def _depth_bar(figure: Figure, axes, colors: dict[str, tuple]) -> None:
    """Draw a color bar of the depths, labeled with the parts of the network."""
    number = len(colors)
    mappable = ScalarMappable(
        BoundaryNorm(range(number + 1), number), ListedColormap(list(colors.values()))
    )
    bar = figure.colorbar(mappable, ax=axes, aspect=40, pad=0.01)
    depths: dict[str, list[int]] = {}
    for depth, name in enumerate(colors):
        depths.setdefault(network_part(name), []).append(depth)
    positions = _apart([sum(d) / len(d) + 0.5 for d in depths.values()], 0.035 * number)
    bar.set_ticks(positions, labels=list(depths))
    bar.set_label("layer, by depth")
    bar.minorticks_off()
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0)


def _apart(positions: list[float], gap: float) -> list[float]:
    """Return ascending positions, moved down where they are closer than a gap."""
    moved: list[float] = []
    for position in positions:
        moved.append(max(position, moved[-1] + gap) if moved else position)
    return moved
