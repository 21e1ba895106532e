"""The custom operators under torch.compile, torch.export, TorchScript and checkpointing."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from apa_det import AGLU, APA
from apa_det.kernels import ops

from ..conftest import CAN_EXPORT


def arguments():
    z, residual = torch.randn(2, 2, 3, 4, 5).requires_grad_().unbind()
    parameters = [torch.rand(1, 3, 1, 1, requires_grad=True) for _ in range(4)]
    curve = [torch.rand(1, requires_grad=True) for _ in range(2)]
    return z.detach().requires_grad_(), residual.detach().requires_grad_(), parameters, curve


@pytest.mark.parametrize("form", ["apa", "log_apa", "logit_apa", "aglu"])
def test_activation_operator(form):
    z, _, _, curve = arguments()
    torch.library.opcheck(ops.activation, (z, *curve, form, "eager"))


def test_affine_aglu_operator():
    z, residual, parameters, curve = arguments()
    for r in (None, residual):
        torch.library.opcheck(ops.affine_aglu, (z, *parameters[:2], r, *curve, "eager"))


@pytest.mark.parametrize("module", [AGLU, APA])
@pytest.mark.parametrize("channels", [None, 4])
def test_compiled_in_one_graph(module, channels):
    layer, z = module(channels), torch.randn(2, 4, 5, 5)

    def gradients(run):
        layer.zero_grad()
        x = z.clone().requires_grad_()
        run(x).square().sum().backward()
        return x.grad, layer.lambda_param.grad, layer.kappa_param.grad

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled), gradients(layer), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("module", [AGLU, APA])
@pytest.mark.parametrize("channels", [None, 4])
def test_exports_run_without_apa_det(module, channels, tmp_path):
    """Traced, scripted and exported models run without importing apa_det."""
    layer, z = module(channels), torch.randn(2, 4, 5, 5)
    torch.jit.save(torch.jit.script(layer), tmp_path / "scripted.pt")
    torch.jit.save(torch.jit.trace(layer, z), tmp_path / "traced.pt")
    if CAN_EXPORT:
        torch.export.save(torch.export.export(layer, (z,)), tmp_path / "exported.pt2")
    torch.save((z, layer(z).detach()), tmp_path / "expected.pth")
    code = """
import os, sys, torch
z, expected = torch.load("expected.pth")
models = [torch.jit.load("scripted.pt"), torch.jit.load("traced.pt")]
if os.path.exists("exported.pt2"):
    models.append(torch.export.load("exported.pt2").module())
for model in models:
    torch.testing.assert_close(model(z), expected)
assert "apa_det" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_checkpointing():
    layer, z = nn.Sequential(nn.Linear(6, 6), AGLU(), nn.Linear(6, 3)), torch.randn(5, 6)
    plain = torch.autograd.grad(layer(z).sum(), layer.parameters())
    recomputed = torch.autograd.grad(
        checkpoint(layer, z, use_reentrant=False).sum(), layer.parameters()
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("name", ["eager", "none"])
def test_environment_variable(name):
    code = """
import torch
from apa_det.kernels.backends import select_backend
print(select_backend(None, torch.zeros(3), torch.zeros(1)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "APA_DET_BACKEND": name},
        capture_output=True,
        text=True,
    )
    if name == "eager":
        assert result.stdout.strip() == "eager", result.stderr
    else:
        assert (
            "APA_DET_BACKEND must be one of auto, eager, native, triton; got 'none'"
            in result.stderr
        )
