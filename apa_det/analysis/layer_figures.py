"""Figures of an analysis: input distributions per kind of layer, and a summary."""

import math
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..utils.plotting import GREY, INK, grid, group_color, label
from .inputs import ACTIVATION, CLASS_SCORE, GATE
from .layer_statistics import Analysis, Layer

_FITS = {"logistic": "#946300", "Gumbel": "#a8329e", "neither": GREY, "": GREY}
_MARKERS = {GATE: "D", ACTIVATION: "o"}
_PLURALS = {GATE: "gates", ACTIVATION: "activations"}
_OUTER = ("backbone", "bottom_up", "roi_heads", "proposal_generator", "head")
_HISTOGRAM = "#cccccc"
_BINS = 60
_TAIL = 0.002  # fraction of a sample on each side that is not drawn


def short_name(name: str) -> str:
    """Return a layer name without redundant parts: backbone, bottom_up, roi_heads, activation."""
    parts = [part for part in name.split(".") if part not in (*_OUTER, "activation")]
    return ".".join(parts) or name


def network_part(name: str) -> str:
    """Return the part of the network that contains a layer: res4, box_head."""
    return short_name(name).split(".")[0]


def distributions(analysis: Analysis, kind: str) -> Figure | None:
    """Draw the inputs of each layer of a kind: histogram with both fits, empirical CDF and η.

    For κ < 0 it shows −z, in which η increases. None: no layer of this kind.
    """
    layers = analysis.of_kind(kind)
    if not layers:
        return None
    rows = max(math.ceil(len(layers) / 6), round(math.sqrt(len(layers) / 2)))
    columns = 2 if kind == CLASS_SCORE else math.ceil(len(layers) / rows)
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3.0 * max(columns, 3) + 0.4, 2.4 * rows + 1.0), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, layer in zip(axes, layers, strict=False):
        _draw_distribution(axis, analysis, layer)
    for axis in axes[len(layers) :]:
        axis.set_axis_off()
    figure.legend(
        handles=[
            Patch(color=_HISTOGRAM, label="inputs"),
            Line2D([], [], color=_FITS["logistic"], label="logistic fit"),
            Line2D([], [], color=_FITS["Gumbel"], label="Gumbel fit"),
            Line2D([], [], color=GREY, label="empirical CDF (right axis)"),
            Line2D([], [], color=INK, linestyle="--", label="η of the layer (right axis)"),
        ],
        loc="outside upper center",
        ncols=5,
        frameon=False,
    )
    figure.supxlabel(
        "z, input of the layer (“by”: difference in log-likelihood per value)", fontsize=10
    )
    return figure


def summary(analysis: Analysis) -> Figure:
    """Draw a summary of all layers: the better fit, λ and κ over depth, and the class scores of
    each frequency group."""
    layers = [layer for layer in analysis.layers if layer.inputs.kind in _PLURALS]
    scores = _last_scores(analysis)
    figure = Figure(figsize=(15 if scores else 10.5, 9.5), layout="constrained")
    figure.suptitle(_headline(analysis), fontsize=14, fontweight="bold", ha="left", x=0.01)
    left, right = figure, None
    if scores:
        left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    if layers:
        advantage, lambdas, kappas = left.subplots(3, 1, sharex=True, height_ratios=(1.3, 1, 1))
        _draw_advantages(advantage, layers)
        _draw_parameters(lambdas, kappas, layers)
        for axis in (advantage, lambdas, kappas):
            _mark_parts(axis, layers, named=axis is advantage)
        kappas.set_xlabel("layers, from the input to the output of the model")
    if scores:
        _draw_scores(right.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0], analysis)
    return figure


def _draw_distribution(axis: Axes, analysis: Analysis, layer: Layer) -> None:
    inputs = layer.inputs
    title = short_name(inputs.name)
    if inputs.group is not None:
        stage = title.rpartition(".")[2]
        title = f"{analysis.groups.labels[inputs.group]}, {_classes(layer)}"
        if stage.isdecimal():  # cascade
            title = f"stage {stage}, {title}"
    if inputs.mirrored:
        title += ", −z"
    axis.set_title(label(title), fontsize=9)
    if layer.logistic is None:
        axis.text(0.5, 0.5, _no_fit(layer), transform=axis.transAxes, ha="center", color=GREY)
        axis.set(xticks=[], yticks=[])
        return
    z = _draw_histogram(axis, layer, _HISTOGRAM)
    for name, fitted in (("logistic", layer.logistic), ("Gumbel", layer.gumbel)):
        axis.plot(z, np.exp(fitted.log_density(z)), color=_FITS[name], linewidth=1.6)
    _draw_eta(axis, layer, z, empirical=True)
    advantage, _ = layer.advantage_of_gumbel
    text = f"{layer.fits_better}\nby {abs(advantage):.3f}"
    if layer.fits_better == "neither":
        text = "neither\nis better"
    text += f"\n\nn = {len(inputs.values):,}"
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    style = {"va": "top", "fontsize": 7.5, "color": _FITS[layer.fits_better], "bbox": box}
    axis.text(0.03, 0.96, text, transform=axis.transAxes, **style)


def _draw_histogram(axis: Axes, layer: Layer, color: str, **style) -> np.ndarray:
    """Draw the sample without its tails; return values z to draw curves over."""
    values = layer.inputs.values
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL))
    bins = min(_BINS, max(8, len(values) // 8))
    heights, edges = np.histogram(values, bins, range=(low, high), density=True)
    axis.stairs(heights, edges, fill=True, color=color, **style)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(labelsize=8)
    return np.linspace(low, high, 200)


def _draw_eta(axis: Axes, layer: Layer, z: np.ndarray, *, empirical: bool) -> None:
    """Draw η of the layer, and optionally the empirical CDF, on a right axis from 0 to 1."""
    right = axis.twinx()
    if empirical:
        values = np.sort(layer.inputs.values)
        right.plot(z, np.searchsorted(values, z) / len(values), color=GREY, linewidth=1)
    eta = layer.learned_cdf(z)
    if eta is not None:
        right.plot(z, eta, color=INK, linestyle="--", linewidth=1.3)
    right.set(ylim=(0, 1.04), yticks=(0, 1))
    right.tick_params(labelsize=8)
    right.spines[["top", "left"]].set_visible(False)


def _draw_advantages(axis: Axes, layers: list[Layer]) -> None:
    for kind, marker in _MARKERS.items():
        chosen = [(x, layer) for x, layer in enumerate(layers) if layer.inputs.kind == kind]
        chosen = [(x, layer) for x, layer in chosen if layer.logistic is not None]
        if not chosen:
            continue
        x = [x for x, _ in chosen]
        y, errors = np.array([layer.advantage_of_gumbel for _, layer in chosen]).T
        colors = [_FITS[layer.fits_better] for _, layer in chosen]
        axis.vlines(x, 0, y, colors=colors, linewidth=1.4, alpha=0.6)
        axis.errorbar(x, y, 2 * errors, fmt="none", ecolor=GREY, elinewidth=0.8)
        faces = "white" if kind == GATE else colors
        axis.scatter(x, y, s=46, c=faces, edgecolors=colors, marker=marker, zorder=3)
    axis.axhline(0, color=INK, linewidth=1)
    limit = 1.15 * max(np.abs(axis.get_ylim()).max(), 1e-3)
    axis.set_ylim(-limit, limit)
    axis.axhspan(0, limit, color=_FITS["Gumbel"], alpha=0.06, linewidth=0)
    axis.axhspan(-limit, 0, color=_FITS["logistic"], alpha=0.06, linewidth=0)
    for y, name, va in ((0.97, "Gumbel", "top"), (0.03, "logistic", "bottom")):
        style = {"color": _FITS[name], "fontweight": "bold", "va": va}
        axis.text(0.01, y, f"{name} fits the inputs better", transform=axis.transAxes, **style)
    axis.set_ylabel("log-likelihood per value:\nGumbel fit − logistic fit")
    style = {"linestyle": "", "color": INK}
    handles = [
        Line2D([], [], marker="D", markerfacecolor="white", label=_PLURALS[GATE], **style),
        Line2D([], [], marker="o", label=_PLURALS[ACTIVATION], **style),
        Patch(color=_FITS["neither"], label="neither fits better"),
    ]
    axis.legend(handles=handles, loc="upper right", fontsize=9)


def _draw_parameters(lambdas: Axes, kappas: Axes, layers: list[Layer]) -> None:
    for kind, marker in _MARKERS.items():
        chosen = [
            (x, layer.inputs.eta)
            for x, layer in enumerate(layers)
            if layer.inputs.kind == kind and layer.inputs.eta is not None
        ]
        for axis, parameter in ((lambdas, 0), (kappas, 1)):
            for x, eta in chosen:
                values = eta[parameter]
                axis.vlines(x, values.min(), values.max(), color=GREY, linewidth=1.2)
                hollow = "white" if kind == GATE else INK
                axis.scatter(x, values.mean(), s=40, c=hollow, edgecolors=INK, marker=marker)
    low, high = lambdas.get_ylim()
    lambdas.set_ylim(min(low, -0.08), max(high, 1.12))
    for y, name, text in ((1, "logistic", "λ = 1: logistic"), (0, "Gumbel", "λ → 0: Gumbel")):
        lambdas.axhline(y, color=_FITS[name], linewidth=1.4)
        where = {"xycoords": lambdas.get_yaxis_transform(), "textcoords": "offset points"}
        style = {"color": _FITS[name], "ha": "right", "va": "bottom", "fontsize": 9}
        lambdas.annotate(text, (1, y), (-4, 3), **where, **style)
    lambdas.set_ylabel("λ of the layer")
    kappas.axhline(0, color=INK, linewidth=1)
    kappas.set_ylabel("κ of the layer\n(κ < 0: η decreases)")


def _mark_parts(axis: Axes, layers: list[Layer], *, named: bool) -> None:
    """Draw a band for each part of the network, with its name above the axis."""
    grid(axis, "y")
    axis.set(xticks=[], xlim=(-0.7, len(layers) - 0.3))
    start = 0
    parts = [network_part(layer.inputs.name) for layer in layers]
    for i, (name, run) in enumerate(groupby(parts)):
        end = start + len(list(run))
        if i % 2:
            axis.axvspan(start - 0.5, end - 0.5, color=INK, alpha=0.04, linewidth=0)
        if named:
            wide = (end - start) / len(layers) > 0.012 * len(name)
            turn = {"ha": "center"} if wide else {"ha": "left", "rotation": 35}
            style = {"va": "bottom", "fontsize": 9, "transform": axis.get_xaxis_transform(), **turn}
            axis.text((start + end - 1) / 2, 1.01, name, **style)
        start = end


def _draw_scores(axes: np.ndarray, analysis: Analysis) -> None:
    scores = _last_scores(analysis)
    drawn = [layer for pair in scores.values() for layer in pair if layer.logistic is not None]
    low = min(np.quantile(layer.inputs.values, _TAIL) for layer in drawn) if drawn else -1
    high = max(np.quantile(layer.inputs.values, 1 - _TAIL) for layer in drawn) if drawn else 1
    z = np.linspace(low, high, 300)
    for axis, (group, pair) in zip(axes, scores.items(), strict=True):
        handles = []
        for layer in pair:
            is_gt = layer.inputs.gt_class
            color = group_color(group) if is_gt else _HISTOGRAM
            text = f"{_classes(layer)}: n = {len(layer.inputs.values):,}, {_verdict(layer)}"
            handles.append(Patch(color=color, alpha=0.65 if is_gt else 1.0, label=text))
            if layer.logistic is not None:
                _draw_histogram(axis, layer, color, alpha=0.65 if is_gt else 1.0)
        if pair[0].inputs.eta is not None:
            _draw_eta(axis, pair[0], z, empirical=False)
        axis.set_xlim(low, high)
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
        axis.set_ylabel("density", fontsize=9)
        axis.tick_params(labelbottom=True)
        style = {"color": group_color(group), "fontweight": "bold", "loc": "left"}
        axis.set_title(f"{analysis.groups.labels[group]} classes", **style)
        axis.legend(handles=handles, loc="upper left", fontsize=8.5, borderaxespad=0.1)
    axes[-1].set_xlabel("z, input of the class score")
    eta = pair[0].inputs.eta
    curve = ""
    if eta is not None:
        lambda_, kappa = (values.mean() for values in eta)
        means = "mean " if len(eta[0]) > 1 else ""
        curve = f" and η (dashed, right axis):\n{means}λ = {lambda_:.3g}, κ = {kappa:.3g}"
    axes[0].figure.suptitle(f"Inputs of the class score{curve}", fontsize=10.5, ha="left", x=0.04)


def _last_scores(analysis: Analysis) -> dict[int, list[Layer]]:
    """Return the last stage's two samples (other, ground-truth classes) by frequency group."""
    scores = analysis.of_kind(CLASS_SCORE)
    last = [layer for layer in scores if layer.inputs.name == scores[-1].inputs.name]
    last.sort(key=lambda layer: (layer.inputs.group, layer.inputs.gt_class))
    return {group: list(pair) for group, pair in groupby(last, lambda layer: layer.inputs.group)}


def _headline(analysis: Analysis) -> str:
    parts = []
    for kind, plural in _PLURALS.items():
        layers = [layer for layer in analysis.of_kind(kind) if layer.logistic is not None]
        if layers:
            gumbel = sum(layer.fits_better == "Gumbel" for layer in layers)
            logistic = sum(layer.fits_better == "logistic" for layer in layers)
            parts.append(f"{len(layers)} {plural}: {gumbel} Gumbel, {logistic} logistic")
    images = f"{analysis.num_images:,} images"
    return f"Inputs closer to Gumbel or logistic?   {';   '.join(parts)}   ({images})"


def _verdict(layer: Layer) -> str:
    if layer.logistic is None:
        return _no_fit(layer)
    if layer.fits_better == "neither":
        return "neither fits better"
    return f"{layer.fits_better} by {abs(layer.advantage_of_gumbel[0]):.3f}"


def _no_fit(layer: Layer) -> str:
    return "constant" if len(layer.inputs.values) > 1 else "too few values"


def _classes(layer: Layer) -> str:
    return "GT classes" if layer.inputs.gt_class else "other classes"
