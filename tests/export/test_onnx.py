"""ONNX export, run by onnxruntime; test_tool.py exports the published recipe."""

import sys

import mpmath
import numpy as np
import pytest
import torch
import torchvision

from apa_det.errors import MissingPackageError
from apa_det.export import Detector, compare, export_onnx, load_exported
from apa_det.export.onnx import OPSET, _batched_nms, _symbolics
from apa_det.export.torchscript import without_trace_warnings

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.parametrize("kind", ["cascade", "retinanet"])
def test_same_detections(detectors, images, kind, tmp_path):
    model, file = detectors(kind), str(tmp_path / "model.onnx")
    export_onnx(model, images[0], file)
    assert not model.training
    exported = load_exported(file)
    for image in images:
        outputs = exported(image)
        assert list(outputs) == list(Detector(model)(image))
        difference = compare(Detector(model)(image), outputs)
        assert difference.is_small and difference.compared >= 10, difference


def test_fixed_size(detectors, images, tmp_path):
    model, file = detectors("quickstart"), str(tmp_path / "model.onnx")
    export_onnx(model, images[0], file, dynamic=False)
    exported = load_exported(file)
    assert compare(Detector(model)(images[0]), exported(images[0])).is_small
    with pytest.raises(Exception, match="dimensions"):
        exported(images[1])


def export(function, inputs, file):
    """Export a function with the first five elements of each input; return a function to run it."""

    class Module(torch.nn.Module):
        def forward(self, *args):
            return function(*args)

    names = [f"x{i}" for i in range(len(inputs))]
    with _symbolics(), without_trace_warnings():
        torch.onnx.export(
            Module(),
            tuple(x[:5] for x in inputs),
            file,
            input_names=names,
            dynamic_axes={name: {0: "n"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(file)

    def run(inputs):
        return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]

    return run


@pytest.mark.parametrize("name", ["log1p", "expm1"])
def test_functions_are_precise(name, tmp_path):
    x = torch.cat([torch.logspace(-30, 1, 500), -torch.logspace(-30, -0.4, 500)])
    values = export(getattr(torch, name), (x,), str(tmp_path / "function.onnx"))((x,))
    exact = np.array([float(getattr(mpmath, name)(v)) for v in x.tolist()])
    assert np.abs(values / exact - 1).max() < 1e-6


def test_suppression(tmp_path):
    def make(n):
        corners = torch.rand(n, 2) * 900
        boxes = torch.cat([corners, corners + 1 + torch.rand(n, 2) * 400], dim=1)
        return boxes, torch.rand(n), torch.randint(1190, 1203, (n,))

    torch.manual_seed(0)
    nms = torch.jit.script(_batched_nms)
    run = export(lambda *inputs: nms(*inputs, 0.5), make(5), str(tmp_path / "nms.onnx"))
    for n in (0, 1, 900, 3000):  # from 1,000 boxes on, class by class
        inputs = make(n)
        expected = torchvision.ops.batched_nms(*inputs, 0.5)
        assert len(expected) < n or n < 2
        assert sorted(run(inputs).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package(detectors, images, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"package onnx.*pip install 'apa_det\[export\]'"):
        if package == "onnx":
            export_onnx(detectors("quickstart"), images[0], str(tmp_path / "model.onnx"))
        else:
            load_exported("model.onnx")
