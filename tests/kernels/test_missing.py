"""Without compiled kernels, APA runs in plain PyTorch, and says so once."""

import logging

import pytest
import torch

from apa_det import APA, aglu
from apa_det.kernels import native


@pytest.fixture
def no_library(monkeypatch):
    folder_without_kernels = "/nowhere/native.py"
    monkeypatch.setattr(native, "__file__", folder_without_kernels)
    library, problem = native._load_library()
    monkeypatch.setattr(native, "_LIBRARY", library)
    monkeypatch.setattr(native, "_PROBLEM", problem)
    native.warn_if_missing.cache_clear()
    yield
    native.warn_if_missing.cache_clear()


def test_missing_kernels_are_logged_once(no_library, caplog):
    z = torch.linspace(-3, 3, 7)
    with caplog.at_level(logging.WARNING, "apa_det"):
        torch.testing.assert_close(aglu(z, 1.0, 1.0), torch.nn.functional.silu(z))
        APA()(z)
        torch.compile(APA(), backend="eager", fullgraph=True)(z)
    (record,) = caplog.records
    assert "plain PyTorch" in record.message and "install a C++ compiler" in record.message


def test_compiled_kernels_are_not_reported(caplog):
    if native._LIBRARY is None:
        pytest.skip("native.cpp is not compiled")
    native.warn_if_missing.cache_clear()
    aglu(torch.ones(2, dtype=torch.float64), 1.0, 1.0)  # the native backend has no float64
    assert not caplog.records
