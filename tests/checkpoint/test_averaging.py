"""Averages of checkpoints, by hand and through the tool."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from apa_det.checkpoint import average_checkpoints, load_checkpoint
from apa_det.engine.ema import build_ema

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/average_checkpoints.py"


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
    """Of half precision too: what is lost is lost once, in the end."""
    values = torch.linspace(0.1, 7.3, 30).half()
    files = [save(f"{i}.pth", {"roi_heads.a": v[None]}) for i, v in enumerate(values)]
    found = average_checkpoints(files)["model"]["roi_heads.a"]
    assert found.dtype == torch.float16
    assert found.item() == values.double().mean().half().item()


def test_formats_of_the_files(save, tmp_path):
    """One of detectron2's model zoo, of arrays, and one of ours, with its classes."""
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
    found = average_checkpoints(files, averaged=True)["model"]
    assert found.keys() == {"weight", "bias"}
    torch.testing.assert_close(found["weight"], (models[0].weight + models[1].weight).detach() / 2)
    with pytest.raises(ValueError, match="plain.pth: .*no moving averages"):
        average_checkpoints([save("plain.pth", state(0.0))], averaged=True)


def test_files_that_do_not_belong_together(save):
    first = save("first.pth", state(1.0), class_names=["a", "b"])
    for other, message in (
        ({"roi_heads.a": torch.ones(2)}, "lacks roi_heads.n, which .*first.pth has"),
        ({**state(1.0), "roi_heads.b": torch.ones(1)}, "has roi_heads.b, which .*first.pth lacks"),
        (
            {**state(1.0), "roi_heads.a": torch.ones(3)},
            r"has roi_heads.a of .*\(3,\), .*\(2,\)",
        ),
    ):
        with pytest.raises(ValueError, match=f"other.pth {message}"):
            average_checkpoints([first, save("other.pth", other)])
    with pytest.raises(ValueError, match="other.pth is of other classes"):
        average_checkpoints([first, save("other.pth", state(1.0), class_names=["b", "a"])])


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")], [1, float("inf")]])
def test_weights_that_are_none(save, weights):
    with pytest.raises(ValueError, match="weights"):
        average_checkpoints([save("a.pth", state(1.0)), save("b.pth", state(2.0))], weights)


def test_tool(save, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("average_checkpoints", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    files = [save(f"{x}.pth", state(x)) for x in (1.0, 2.0)]
    output = str(tmp_path / "average.pth")
    assert tool.main([*files, "--output", output, "--weights", "3", "1"]) == 0
    assert load_checkpoint(output)["model"]["roi_heads.a"].tolist() == [1.25, 1.0]
    assert "2 tensors, of 2 files" in capsys.readouterr().out
    assert tool.main([*files, "none.pth", "--output", output]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("average_checkpoints.py: There is no checkpoint none.pth.")
    assert tool.main([*files, "--output", "average"]) == 2
    assert "name a .pth file" in capsys.readouterr().err
