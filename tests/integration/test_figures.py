"""All figures: legends, names of the axes, readable text, and no line through two points."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from apa_det import AGLU, APA
from apa_det.analysis import analyze, plot_parameter_history
from apa_det.analysis.layer_figures import distributions, summary
from apa_det.checkpoint.starting_weights import choose_starting_weights
from apa_det.data import complete_categories
from apa_det.data.advice import advise
from apa_det.data.advice.advice_figure import draw_advice
from apa_det.engine.jobs.calibrate import CalibrationFit
from apa_det.experiments.difference_figure import draw
from apa_det.utils.plotting import contrast


def saved(monkeypatch, plot, path):
    """Return the figure that a function saves."""
    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **kw: (figures.append(self), original(self, *args, **kw)),
    )
    plot(path)
    return figures[-1]


def calibration(strengths, monkeypatch, tmp_path):
    metrics = [{"AP": 20.0 + s, "APr": float("nan"), "APfew": 20.0} for s in strengths]
    fit = CalibrationFit(
        "NorCal", strengths, metrics, [1.0] * len(strengths), [0.0] * len(strengths)
    )
    return saved(monkeypatch, fit.draw, tmp_path / "a.png")


def history(iterations, monkeypatch, tmp_path):
    values = [(i, 0.5) for i in iterations]
    layers = {f"res{i % 4}.{i}.act": {"lambda": values, "kappa": values} for i in range(30)}
    layers["box_predictor.score"] = layers["res0.0.act"]
    return saved(monkeypatch, lambda p: plot_parameter_history(layers, p), tmp_path / "a.png")


def comparison(*_):
    rows = [SimpleNamespace(name=name) for name in ("ReLU", "APA", "not finished")]
    values = {"ReLU": {0: 20.0, 1: 21.0}, "APA": {0: 22.0, 1: 22.5}, "not finished": {}}
    mean = {name: np.mean([*v.values()]) if v else float("nan") for name, v in values.items()}
    difference = SimpleNamespace(difference=1.75, low=1.0, high=2.5)
    results = SimpleNamespace(
        plan=SimpleNamespace(rows=rows),
        metrics=("AP", "APr"),
        iou_types=("bbox",),
        values=lambda name, iou_type, metric: values[name],
        mean=lambda name, iou_type, metric: mean[name],
        differences={("APA", "bbox", "AP"): difference},
    )
    return draw(results)


def advice(counts):
    images = [{"id": i, "width": 400, "height": 100} for i in range(150)]
    annotations = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 30, 20]}
        for c, count in enumerate(counts)
        for i in range(count)
    ]
    categories = [{"id": c, "name": f"class {c}"} for c in range(len(counts))]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    complete_categories(dataset)
    return draw_advice(advise("a.json", dataset, choose_starting_weights("none", [], masks=False)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.act = APA(), AGLU()

    def forward(self, batch):
        self.act(batch[0]["z"])
        self.gate(batch[0]["z"])


def analysis_of_layers():
    batches = [[{"z": torch.randn(40, 50)}] for _ in range(2)]
    return analyze(Model(), batches)


FIGURES = {
    "two strengths": lambda *args: calibration((0.0, 0.5), *args),
    "strengths": lambda *args: calibration((0.0, 0.5, 1.0), *args),
    "two iterations": lambda *args: history((9, 19), *args),
    "iterations": lambda *args: history(range(9, 99, 10), *args),
    "comparison": comparison,
    "advice": lambda *_: advice((150, 40, 5)),
    "advice on two classes": lambda *_: advice((150, 5)),
    "summary": lambda *_: summary(analysis_of_layers()),
    "distributions": lambda *_: distributions(analysis_of_layers(), "activation"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, monkeypatch, tmp_path):
    figure = FIGURES[name](monkeypatch, tmp_path)
    figure.draw_without_rendering()
    axes = [axis for axis in figure.axes if axis.axison and axis.has_data()]
    legends = [*figure.legends, *(axis.get_legend() for axis in axes)]
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert any(legends) or bars

    named = {figure.get_supxlabel()} - {""}
    for axis in axes:
        shared = axis.get_shared_x_axes().get_siblings(axis)
        x_names = named | {a.get_xlabel() for a in shared} - {""}
        assert x_names or axis in bars
        for line in axis.lines:  # no line through two points
            of_data = line.get_transform() == axis.transData and line.get_linestyle() != "None"
            horizontal = len(set(line.get_ydata())) == 1 and name == "comparison"  # an interval
            assert not of_data or len(line.get_xdata()) != 2 or horizontal

    for text in figure.findobj(Text):
        if text.get_text():
            assert contrast(to_hex(text.get_color()), "#ffffff") >= 4.5, text


def test_two_strengths_have_values(monkeypatch, tmp_path):
    (axis,) = calibration((0.0, 0.5), monkeypatch, tmp_path).axes
    assert sorted(text.get_text() for text in axis.texts) == ["20.0", "20.0", "20.0", "20.5"]
    labels = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert labels == ["AP", "APfew"]  # without ground truth: no APr
