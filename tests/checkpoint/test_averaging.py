"""Averages of checkpoints: hand-worked cases and the command line tool."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch

from apa_det.checkpoint import average_checkpoints, load_checkpoint
from apa_det.engine.ema import build_ema
from apa_det.errors import UserError


@pytest.fixture
def save(tmp_path):
    def write(name, state, **extra):
        torch.save({"model": state, **extra}, tmp_path / name)
        return str(tmp_path / name)

    return write


def state(x, count=1):
    return {"roi_heads.a": torch.tensor([x, 1.0]), "roi_heads.n": torch.tensor(count)}


def test_by_hand(save):
    files = [save(f"{x}.pth", state(x, int(x))) for x in (1.0, 2.0, 6.0)]
    plain = average_checkpoints(files)["model"]
    assert plain["roi_heads.a"].tolist() == [3.0, 1.0]
    assert plain["roi_heads.n"] == 6  # the last file's
    weighted = average_checkpoints(files, [2, 0, 6])["model"]
    assert weighted["roi_heads.a"].tolist() == [4.75, 1.0]
    assert weighted["roi_heads.a"].dtype == torch.float32


def test_sums_are_float64(save):
    """Also for half precision, which is rounded only once, at the end."""
    values = torch.linspace(0.1, 7.3, 30).half()
    files = [save(f"{i}.pth", {"roi_heads.a": v[None]}) for i, v in enumerate(values)]
    found = average_checkpoints(files)["model"]["roi_heads.a"]
    assert found.dtype == torch.float16
    assert found.item() == values.double().mean().half().item()


def test_formats_of_the_files(save, tmp_path):
    """A model zoo file of arrays and one of our own with class names."""
    with open(tmp_path / "zoo.pkl", "wb") as f:
        arrays = {"roi_heads.a": np.float32([3, 1]), "roi_heads.n": np.array(5)}
        pickle.dump({"model": arrays, "__author__": "someone"}, f)
    ours = save("ours.pth", {f"module.{k}": v for k, v in state(5.0).items()}, class_names=["a"])
    found = average_checkpoints([ours, str(tmp_path / "zoo.pkl")])
    assert found["model"]["roi_heads.a"].tolist() == [4.0, 1.0]
    assert found["class_names"] == ["a"]


def test_moving_averages(save):
    models = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    files = []
    for i, model in enumerate(models):
        ema = build_ema(model, 0.9)
        ema.update_parameters(model)
        files.append(save(f"{i}.pth", state(0.0), ema=ema.state_dict()))
    found = average_checkpoints(files, ema=True)["model"]
    assert found.keys() == {"weight", "bias"}
    torch.testing.assert_close(found["weight"], (models[0].weight + models[1].weight).detach() / 2)
    with pytest.raises(ValueError, match="plain.pth: .*no EMA weights"):
        average_checkpoints([save("plain.pth", state(0.0))], ema=True)


def test_files_of_different_models(save):
    first = save("first.pth", state(1.0), class_names=["a", "b"])
    for other, message in (
        ({"roi_heads.a": torch.ones(2)}, r"roi_heads.n is in \S*first.pth but not in \S*other.pth"),
        (
            {**state(1.0), "roi_heads.b": torch.ones(1)},
            r"roi_heads.b is in \S*other.pth but not in \S*first.pth",
        ),
        (
            {**state(1.0), "roi_heads.a": torch.ones(3)},
            r"roi_heads.a has shape \(3,\) in \S*other.pth, but \(2,\) in \S*first.pth",
        ),
    ):
        with pytest.raises(UserError, match=f"^{message}. Average checkpoints of the same"):
            average_checkpoints([first, save("other.pth", other)])
    with pytest.raises(UserError, match="other.pth and .*first.pth have different class_names"):
        average_checkpoints([first, save("other.pth", state(1.0), class_names=["b", "a"])])


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")], [1, float("inf")]])
def test_invalid_weights(save, weights):
    with pytest.raises(UserError, match="weights"):
        average_checkpoints([save("a.pth", state(1.0)), save("b.pth", state(2.0))], weights)


def test_tool(save, tool, tmp_path, capsys):
    average = partial(
        tool, "average_checkpoints", *(save(f"{x}.pth", state(x)) for x in (1.0, 2.0))
    )
    output = str(tmp_path / "new/average.pth")
    assert average("--output", output, "--weights", "3,1") == 0
    assert load_checkpoint(output)["model"]["roi_heads.a"].tolist() == [1.25, 1.0]
    assert "2 tensors of 2 files" in capsys.readouterr().out
    assert average("none.pth", "--output", output) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("average_checkpoints.py: Checkpoint not found: none.pth.")
    assert average("--output", "average") == 2
    assert "must name a .pth file" in capsys.readouterr().err
