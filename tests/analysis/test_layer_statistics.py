"""Analysis of models with inputs of known distributions, and its files."""

import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from apa_det import AGLU, APA
from apa_det.analysis import GATE, analyze, write_analysis
from apa_det.errors import UserError
from apa_det.evaluation import FrequencyGroups


class Model(nn.Module):
    """Feeds each layer the batch's tensor of its name."""

    def __init__(self):
        super().__init__()
        self.act = AGLU(lambda_range=(0.5, 0.5), kappa_range=(1.2, 1.2))
        self.gate = APA(lambda_range=(1.0, 1.0), kappa_range=(1.0, 1.0))
        self.falling = APA(lambda_range=(0.0, 0.0), kappa_range=(-1.0, -1.0), lambda_min=0.0)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout()

    def forward(self, batch):
        assert not self.training
        for name, z in batch[0].items():
            self.get_submodule(name)(z)


@pytest.fixture(scope="module")
def analysis():
    rng = np.random.default_rng(0)
    batches = [
        [
            {
                "act": torch.tensor(rng.logistic(1, 2, (2, 3, 8, 8))),
                "gate": torch.tensor(rng.logistic(size=(50, 40))),
                "falling": torch.tensor(-rng.gumbel(size=(50, 40))),
                "relu": torch.zeros(5, 5),
            }
        ]
        for _ in range(4)
    ]
    model = Model().train()
    model.dropout.eval()
    analysis = analyze(model, batches)
    assert model.training and model.gate.training and not model.dropout.training
    return analysis


def test_rows(analysis):
    rows = {row["layer"]: row for row in analysis.rows()}
    assert list(rows) == ["act", "gate", "falling", "relu"] and analysis.num_images == 4
    act, gate, falling, relu = rows.values()
    assert act["num_values"] == act["sample_size"] == 4 * 2 * 3 * 64
    assert (act["kind"], act["type"], act["lambda"]) == ("activation", "AGLU", 0.5)
    assert act["logistic_location"] == pytest.approx(1, abs=0.3)
    assert act["logistic_scale"] == pytest.approx(2, rel=0.1)
    # η is the logistic CDF for λ = κ = 1, and the mirrored Gumbel CDF for λ = 0, κ = -1
    assert [row["fits_better"] for row in (act, gate, falling)] == ["logistic"] * 2 + ["Gumbel"]
    assert (gate["mirrored"], falling["mirrored"]) == (False, True)
    entropies = 2.0, 1 + np.euler_gamma
    for row, name, entropy in zip((gate, falling), ("logistic", "gumbel"), entropies, strict=True):
        assert row["log_likelihood_learned"] == pytest.approx(-entropy, abs=0.05)
        assert 0 <= row[f"log_likelihood_{name}"] - row["log_likelihood_learned"] < 1e-3
    assert relu["fits_better"] == relu["lambda"] == relu["log_likelihood_learned"] == ""
    assert "falling" in analysis.table() and "nan" not in analysis.table()


def test_learned_cdf_is_eta(analysis):
    gate = analysis.of_kind(GATE)[0]
    z = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(gate.learned_cdf(z), 1 / (1 + np.exp(-z)))


def test_standard_error():
    """It has the magnitude of the differences between parts of the sample."""
    model = nn.ModuleDict({"gate": nn.Sigmoid()})
    model.forward = lambda batch: model["gate"](batch[0])
    rng = np.random.default_rng(0)
    z = torch.tensor(rng.normal(size=300))
    (layer,) = analyze(model, [[z]]).layers
    advantage, error = layer.advantage_of_gumbel
    parts = [analyze(model, [[part]]).layers[0].advantage_of_gumbel[0] for part in z.split(30)]
    assert 0.3 < error / (np.std(parts) / math.sqrt(len(parts))) < 3
    assert layer.fits_better == "logistic" and advantage < -2 * error


def test_files(analysis, tmp_path):
    written = write_analysis(analysis, tmp_path / "out")
    names = {path.name for path in written}
    assert names == {"summary.png", "gates.png", "activations.png", "layers.csv"}
    assert all(path.stat().st_size > 1000 for path in written if path.suffix == ".png")
    with open(tmp_path / "out/layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["act", "gate", "falling", "relu"]
    assert float(rows[1]["kappa"]) == 1 and rows[3]["kappa"] == ""


def test_model_without_layers(tmp_path):
    empty = analyze(nn.Identity(), [[{}]], groups=FrequencyGroups.lvis())
    with pytest.raises(UserError, match="nothing to analyze"):
        write_analysis(empty, tmp_path)
