"""Without compiled kernels, APA runs in plain PyTorch, and says so once."""

import logging

import pytest
import torch

from apa_det import APA, aglu
from apa_det.kernels import native_library, ops


@pytest.fixture
def no_library(monkeypatch):
    folder_without_kernels = "/nowhere/native_library.py"
    monkeypatch.setattr(native_library, "__file__", folder_without_kernels)
    library, problem = native_library._load_library()
    monkeypatch.setattr(native_library, "LIBRARY", library)
    monkeypatch.setattr(native_library, "PROBLEM", problem)
    monkeypatch.setattr(ops, "_plans", {})
    native_library.warn_if_missing.cache_clear()
    yield
    native_library.warn_if_missing.cache_clear()


def test_missing_kernels_are_logged_once(no_library, caplog):
    z = torch.linspace(-3, 3, 7)
    with caplog.at_level(logging.WARNING, "apa_det"):
        torch.testing.assert_close(aglu(z, 1.0, 1.0), torch.nn.functional.silu(z))
        APA()(z)
        torch.compile(APA(), backend="eager", fullgraph=True)(z)
    (record,) = caplog.records
    assert "plain PyTorch" in record.message and "install a C++ compiler" in record.message


def test_compiled_kernels_are_not_reported(caplog):
    if native_library.LIBRARY is None:
        pytest.skip("the library is not compiled")
    native_library.warn_if_missing.cache_clear()
    aglu(torch.ones(2, dtype=torch.float64), 1.0, 1.0)  # the native backend has no float64
    assert not caplog.records
