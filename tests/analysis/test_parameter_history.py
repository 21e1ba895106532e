"""History of λ and κ, from files written by hand and by the trainer's hooks."""

import json

import pytest
import torch
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from apa_det import AGLU, APA
from apa_det.analysis import plot_parameter_history, read_parameter_history
from apa_det.analysis.parameter_history import _draw_layers, _kind_by_name
from apa_det.engine import LambdaKappaPlotter, LambdaKappaWriter
from apa_det.errors import MissingFileError, UserError


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def line(iteration, **values):
    return json.dumps({"iteration": iteration, **{f"apa/{k}": v for k, v in values.items()}})


def test_read_parameter_history(tmp_path):
    """The training is resumed at iteration 20 after reaching 40; the last line is truncated."""
    path = write(
        tmp_path / "metrics.json",
        line(19, **{"a.act/lambda": 0.5, "a.act/kappa": 1.0}),
        json.dumps({"iteration": 29, "total_loss": 3.0}),
        line(39, **{"a.act/lambda": 0.9, "a.act/kappa": 9.0}),
        line(24, **{"a.act/lambda": 0.6, "a.act/kappa": 1.1}),
        line(44, **{"a.act/lambda": 0.7, "a.act/kappa": 1.2}),
        line(59, **{"a.act/lambda": 0.8})[:-5],
    )
    assert read_parameter_history(path) == {
        "a.act": {
            "lambda": [(19, 0.5), (24, 0.6), (44, 0.7)],
            "kappa": [(19, 1.0), (24, 1.1), (44, 1.2)],
        }
    }


def test_means_of_channels_and_order(tmp_path):
    names = ["res10.act", "res2.10.act", "res2.9.gate.activation", "stem.act"]
    values = {f"backbone.{n}/{s}/mean": 1.0 for n in names for s in ("lambda", "kappa")}
    values |= {f"backbone.{n}/lambda/max": 5.0 for n in names}
    history = read_parameter_history(write(tmp_path / "metrics.json", line(0, **values)))
    assert list(history) == [f"backbone.{names[i]}" for i in (3, 2, 1, 0)]
    assert history["backbone.stem.act"]["lambda"] == [(0, 1.0)]


def test_kind_by_name():
    names = ["backbone.res2.0.gate.activation", "roi_heads.box_predictor.score", "stem.act"]
    assert list(map(_kind_by_name, names)) == ["gate", "class score", "activation"]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(MissingFileError, match="metrics.json does not exist"):
        read_parameter_history(tmp_path / "metrics.json")
    with pytest.raises(UserError, match="LOG_PERIOD"):
        plot_parameter_history({}, tmp_path / "out.png")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.gate = AGLU(), APA(4)

    def forward(self, data):
        return {"loss": self.gate(self.act(data)).mean()}


def train(folder, start, end, period, model=None):
    model = model or Model()
    data = [torch.ones(2, 4, 1, 1)] * 10
    parameters = [*model.parameters(), nn.Parameter(torch.zeros(1))]
    trainer = SimpleTrainer(model, data, torch.optim.SGD(parameters, lr=0.1))
    drawn = []
    path = folder / "apa_parameters.png"
    trainer.register_hooks(
        [
            LambdaKappaWriter(model, 1),
            hooks.PeriodicWriter([JSONWriter(str(folder / "metrics.json"))], 1),
            LambdaKappaPlotter(model, str(folder), period),
            hooks.CallbackHook(after_step=lambda t: drawn.append(path.exists() and path.unlink())),
        ]
    )
    trainer.train(start, end)
    return [done is None for done in drawn]


def test_plotted_every_period_and_at_the_end(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "apa_det.engine.hooks.plot_parameter_history", lambda *args: seen.append(args)
    )
    train(tmp_path, 0, 5, period=2)
    train(tmp_path, 5, 6, period=0)  # resumed
    ends = [[i for i, _ in history["act"]["kappa"]] for history, *_ in seen]
    assert ends == [[*range(2)], [*range(4)], [*range(5)], [*range(6)]]
    assert seen[0][2] == {"act": "activation", "gate": "gate"}


def test_png(tmp_path):
    assert train(tmp_path, 0, 2, period=0) == [False, True]
    plot_parameter_history(read_parameter_history(tmp_path / "metrics.json"), tmp_path / "out.png")
    assert imread(tmp_path / "out.png").shape[0] > 500


def test_model_without_apa(tmp_path):
    class Plain(nn.Module):
        def forward(self, data):
            return {"loss": data.mean().requires_grad_()}

    assert train(tmp_path, 0, 2, period=1, model=Plain()) == [False, False]


def test_many_layers(tmp_path):
    """Thin lines, and the mean of each part over the layers with a value at an iteration."""
    values = {f"res{2 + i // 15}.{i}.act1": [(0, i), (9, i)] for i in range(30)}
    values["res2.0.act1"] = [(0, 15.0)]
    axis = Figure().subplots()
    _draw_layers(axis, values, dict.fromkeys(values, (0, 0, 0)))
    bold = [line.get_xydata().tolist() for line in axis.lines if line.get_linewidth() > 1]
    assert len(axis.lines) == 32
    assert bold == [[[0, 8.0], [9, 7.5]], [[0, 22.0], [9, 22.0]]]
