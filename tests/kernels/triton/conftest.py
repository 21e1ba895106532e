"""The triton backend runs on a GPU if there is one, otherwise in Triton's interpreter.

Triton reads TRITON_INTERPRET on import, so test_interpreter.py runs the tests in a subprocess. The
interpreter is more exact than a GPU: it rounds 2^x and 1/√x correctly, never flushes to zero and
always propagates NaN. It also truncates to bfloat16. The fixture below makes it behave like a GPU.
"""

import os

import numpy as np
import pytest
import torch

ULP = 2.0**-23
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS_HERE = INTERPRETED or torch.cuda.is_available()

on_device = pytest.mark.skipif(not RUNS_HERE, reason="run by test_interpreter.py")


@pytest.fixture(autouse=True)
def gpu_rounding(monkeypatch):
    """Make the interpreter round, flush and propagate NaN as a GPU does."""
    if not INTERPRETED:
        return
    import triton
    from triton.runtime import interpreter

    def one_ulp_off(function):
        def operation(self, argument):
            with np.errstate(all="ignore"):
                exact = function(argument.data.astype(np.float64))
                noise = np.sin(1e4 * np.frombuffer(argument.data.tobytes(), np.int32) + 1)
                wrong = exact * (1 + ULP * noise.reshape(exact.shape))
                value = np.where(argument.data == 0, exact, wrong).astype(np.float32)
            value[np.abs(value) < np.finfo(np.float32).tiny] = 0
            return interpreter.TensorHandle(value, argument.dtype)

        return operation

    def convert(data, source, target, rounding):
        if target != triton.language.bfloat16:
            return wrong_convert(data, source, target, rounding)
        return torch.from_numpy(data.copy()).to(torch.bfloat16).view(torch.int16).numpy()

    wrong_convert = interpreter._convert_float
    monkeypatch.setattr(interpreter, "_convert_float", convert)
    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_exp2", one_ulp_off(np.exp2))
    monkeypatch.setattr(builder, "create_rsqrt", one_ulp_off(lambda x: x**-0.5))
    for name, function in [("create_minnumf", np.fmin), ("create_maxnumf", np.fmax)]:
        monkeypatch.setattr(builder, name, lambda self, a, b, f=function: self.binary_op(a, b, f))


def assert_close(ours, reference):
    """Compare shapes and values, with a tolerance relative to the largest value: sums cancel."""
    assert (ours is None) == (reference is None)
    if ours is not None:
        assert ours.shape == reference.shape
        tolerance = 1e-5 * max([1.0, *reference.abs().flatten().tolist()])
        torch.testing.assert_close(ours.double(), reference.double(), rtol=0, atol=tolerance)


def double(tensors):
    return [
        t.double() if isinstance(t, torch.Tensor) and t.dtype == torch.float else t for t in tensors
    ]
