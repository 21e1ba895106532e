"""Detectors as ONNX, run by onnxruntime, against the models."""

import sys

import mpmath
import numpy as np
import pytest
import torch
import torchvision

from apa_det.export import Detector, compare, export_onnx, load_exported
from apa_det.export.onnx import OPSET, _batched_nms, _symbolics

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.parametrize("kind", ["published", "cascade", "retinanet"])
def test_finds_the_same(detectors, images, kind, tmp_path):
    model, file = detectors(kind), str(tmp_path / "model.onnx")
    export_onnx(model, images[0], file)
    assert not model.training
    exported = load_exported(file)
    for image in images:
        found = exported(image)
        assert list(found) == list(Detector(model)(image))
        difference = compare(Detector(model)(image), found)
        assert difference.is_small and difference.compared >= 10, difference


def test_fixed_size(detectors, images, tmp_path):
    model, file = detectors("quickstart"), str(tmp_path / "model.onnx")
    export_onnx(model, images[0], file, dynamic=False)
    exported = load_exported(file)
    assert compare(Detector(model)(images[0]), exported(images[0])).is_small
    with pytest.raises(Exception, match="dimensions"):
        exported(images[1])


def run(function, inputs, file):
    """The function exported and run on the inputs."""

    class Module(torch.nn.Module):
        def forward(self, *args):
            return function(*args)

    names = [f"x{i}" for i in range(len(inputs))]
    with _symbolics():
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
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


@pytest.mark.parametrize("name", ["log1p", "expm1"])
def test_functions_are_precise(name, tmp_path):
    x = torch.cat([torch.logspace(-30, 1, 500), -torch.logspace(-30, -0.4, 500)])
    values = run(getattr(torch, name), (x,), str(tmp_path / "function.onnx"))
    exact = np.array([float(getattr(mpmath, name)(v)) for v in x.tolist()])
    assert np.abs(values / exact - 1).max() < 1e-6


@pytest.mark.parametrize("n", [1, 5, 900, 3000])
def test_suppression(n, tmp_path):
    torch.manual_seed(0)
    corners = torch.rand(n, 2) * 900
    boxes = torch.cat([corners, corners + 1 + torch.rand(n, 2) * 400], dim=1)
    inputs = boxes, torch.rand(n), torch.randint(1190, 1203, (n,))
    nms = torch.jit.script(_batched_nms)
    kept = run(lambda *args: nms(*args, 0.5), inputs, str(tmp_path / "nms.onnx"))
    expected = torchvision.ops.batched_nms(*inputs, 0.5)
    assert len(expected) < n or n < 10
    assert sorted(kept.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package(detectors, images, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"package onnx.*pip install 'apa_det\[export\]'"):
        if package == "onnx":
            export_onnx(detectors("quickstart"), images[0], str(tmp_path / "model.onnx"))
        else:
            load_exported("model.onnx")
