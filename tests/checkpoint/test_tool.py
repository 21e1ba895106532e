"""The command line tools/convert_checkpoint.py."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision

from apa_det.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml")


@pytest.fixture(scope="module")
def resnet():
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture
def convert(tool, tmp_path, capsys):
    """Return a function that runs the tool: (exit status, written file, stdout, stderr)."""

    def convert(checkpoint, *flags, output="out.pth"):
        if checkpoint is not None:
            torch.save(checkpoint, tmp_path / "in.pth")
        files = [tmp_path / "in.pth", "--output", tmp_path / output]
        status = tool("convert_checkpoint", *files, *flags)
        written = None
        if (tmp_path / output).exists():
            written = load_checkpoint(str(tmp_path / output))
        return status, written, *capsys.readouterr()

    return convert


def test_backbone(convert, resnet):
    status, written, out, err = convert(resnet, "--config-file", CONFIG)
    assert (status, err) == (0, "")
    assert written.keys() == {"model", "__author__"}
    assert "torchvision ResNet" in written["__author__"]
    name = "backbone.bottom_up.res4.1.conv2.weight"
    assert torch.equal(written["model"][name], resnet["layer3.1.conv2.weight"])
    table, rest = out.split("Parameters not in the file keep their initialization:")
    assert re.search(r"\nignored +fc\.{weight, bias} ", table)
    assert "\nbackbone.bottom_up.res4.1.gate.fc1.weight\n" in rest
    assert "\nroi_heads.mask_head.predictor.{weight, bias}\n" in rest
    assert rest.strip().endswith(f"out.pth: {len(written['model'])} tensors.")


def test_without_config(convert, resnet):
    status, written, out, _ = convert({"model": resnet})
    assert status == 0 and "Give --config-file to check" in out
    assert len(written["model"]) == len(resnet) - 2
    names = convert({"model": resnet, "class_names": ["a", "b"]})[1]["class_names"]
    assert names == ["a", "b"]


def test_averages(convert, resnet):
    averages = {f"module.{name}": torch.ones_like(t) for name, t in resnet.items()}
    checkpoint = {"model": resnet, "model_ema": {"n_averaged": torch.tensor(3), **averages}}
    _, weights, *_ = convert(checkpoint)
    _, averaged, *_ = convert(checkpoint, "--ema")
    name = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(weights["model"][name], resnet["conv1.weight"])
    assert torch.equal(averaged["model"][name], torch.ones(64, 3, 7, 7))


def test_misfit(convert, resnet):
    resnet = {name: tensor for name, tensor in resnet.items() if name != "layer1.1.conv1.weight"}
    resnet["layer2.0.conv1.weight"] = torch.zeros(1)
    status, written, _, err = convert(resnet, "--config-file", CONFIG)
    assert status == 2 and written is None
    assert (
        err.count("\n") == 1 and "in.pth: The checkpoint (torchvision ResNet) does not fit" in err
    )
    assert "layer2.0.conv1.weight has shape (1,)" in err
    assert "1 wrong shape, 1 missing" in err

    status, written, out, _ = convert(resnet, "--config-file", CONFIG, "--allow-partial")
    assert status == 0
    _, rest = out.split("Parameters not in the file keep their initialization:")
    for name in ("res2.1.conv1.weight", "res3.0.conv1.weight"):
        assert f"\nbackbone.bottom_up.{name}\n" in rest
        assert f"backbone.bottom_up.{name}" not in written["model"]


def test_round_trip(convert, resnet):
    _, written, *_ = convert(resnet)
    status, back, *_ = convert(written, "--reverse")
    assert status == 0 and back.keys() == {"state_dict"}
    assert back["state_dict"].keys() == {
        f"backbone.{name}" for name in resnet if not name.startswith("fc.")
    }
    for name, tensor in back["state_dict"].items():
        assert torch.equal(tensor, resnet[name.removeprefix("backbone.")])


def test_options_of_the_config(convert, resnet):
    depth = ["--opts", "MODEL.RESNETS.DEPTH", "34"]
    status, _, _, err = convert(resnet, "--config-file", CONFIG, *depth)
    assert status == 2 and "missing" in err
    status, _, _, err = convert(resnet, "--config-file", CONFIG, "--opts", "MODEL.NONE", "1")
    assert status == 2 and "MODEL.NONE" in err


@pytest.mark.parametrize(
    "flags, output, message",
    [
        ([], "out.pkl", "must name a .pth file"),
        (["--config-file", "none.yaml"], "out.pth", "no config file none.yaml"),
        (["--ema"], "out.pth", "no EMA weights"),
    ],
)
def test_one_line_errors(flags, output, message, convert, resnet):
    status, written, _, err = convert(resnet, *flags, output=output)
    assert status == 2 and written is None
    assert err.count("\n") == 1 and message in err


def test_invalid_files(convert, tmp_path):
    status, _, _, err = convert(None)
    assert status == 2 and "Checkpoint not found" in err

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/canary",)

    (tmp_path / "in.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    status, _, _, err = convert(None)
    assert status == 2 and "system" in err and err.count("\n") == 1
    assert not (tmp_path / "canary").exists()
