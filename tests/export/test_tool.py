"""The export-model command, and its files in a separate process."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from apa_det.export import Detector, Difference

from .conftest import KINDS, SMALL

ALONE = """
import sys
import torch, torchvision
import onnxruntime
image, expected = torch.load("expected.pth")
session = onnxruntime.InferenceSession("onnx/model.onnx")
values = session.run(None, {"image": image.numpy()})
names = [output.name for output in session.get_outputs()]
from_onnx = dict(zip(names, map(torch.from_numpy, values)))
traced, scripted = (torch.jit.load(f"{m}/model.ts")(image) for m in ("tracing", "scripting"))
for outputs in (from_onnx, traced, scripted):
    assert list(outputs) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(outputs[name], values, rtol=0, atol=1e-4)
assert not {"apa_det", "detectron2"} & sys.modules.keys()
"""


@pytest.fixture
def export(tool, detectors, quickstart, tmp_path, capsys):
    """Run the command on the published kind; return exit status, stdout and stderr."""
    torch.save({"model": detectors("published").state_dict()}, tmp_path / "model.pth")
    Image.linear_gradient("L").resize((160, 96)).convert("RGB").save(tmp_path / "image.png")

    def export(*flags, image="image.png", weights="model.pth"):
        flags = ["--config-file", quickstart.yaml, "--sample-image", tmp_path / image, *flags]
        opts = [*SMALL, *KINDS["published"].split(), "INPUT.MIN_SIZE_TEST", "96"]
        opts += ["MODEL.WEIGHTS", tmp_path / weights]
        return tool("export_model", *flags, *opts), *capsys.readouterr()

    return export


def test_files_run_without_apa_det(export, detectors, images, tmp_path):
    pytest.importorskip("onnxruntime")
    for method, *flags in (
        ("tracing", "--fuse"),
        ("scripting", "--export-method", "scripting"),
        ("onnx", "--format", "onnx"),
    ):
        status, out, err = export(*flags, "--output", str(tmp_path / method))
        assert status == 0, err
        assert "96 x 160" in out and "72 x 106" in out  # whole, and cropped
        assert "RGB, 0 to 255" in out and "(N, 1, 28, 28)" in out
    expected = Detector(detectors("published"))(images[0])
    torch.save((images[0], expected), tmp_path / "expected.pth")
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True)


def test_a_file_that_differs_from_the_model(export, tmp_path, monkeypatch):
    differs = Difference(20, 20, 20, 0.5, 0.001, 0.0)
    monkeypatch.setattr("apa_det.export.verification.compare", lambda expected, actual: differs)
    status, _, err = export("--fixed-size", "--output", str(tmp_path))
    assert status == 2
    assert "model.ts does not detect the same as the model in" in err
    assert "boxes differ by up to 0.5 pixels and scores by 0.001" in err


def test_errors(export, tmp_path):
    for flags, message in (
        (
            ["--format", "onnx", "--export-method", "scripting"],
            "works only with --format torchscript",
        ),
        ([], "There is no image"),
    ):
        status, _, err = export(*flags, "--output", str(tmp_path / "none"), image="none.png")
        assert status == 2 and message in err and err.count("\n") == 1
    status, _, err = export(weights="none.pth")
    assert status == 2 and "none.pth" in err
    assert not (tmp_path / "none").exists()
