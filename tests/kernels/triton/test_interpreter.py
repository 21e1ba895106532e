"""Run the tests of this folder in Triton's interpreter; compile the kernels without a GPU."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import INTERPRETED, RUNS_HERE

triton = pytest.importorskip("triton")


@pytest.mark.skipif(RUNS_HERE, reason="the tests run in this process")
def test_interpreted():
    from triton.runtime.interpreter import InterpreterBuilder

    if not hasattr(InterpreterBuilder, "get_int1_ty"):
        pytest.skip("the interpreter of Triton 3.0 has no booleans")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        Path(__file__).parent,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "backward", "reduce", "class_loss"])
def test_compiles(kernel, columns):
    """Compiled for compute capability 8.0, without a GPU: vector loads, and no local memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apa_det.kernels import triton_class_loss, triton_device

    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("Triton before 3.3 takes other arguments")
    module = triton_class_loss if kernel == "class_loss" else triton_device
    function = getattr(module, kernel)
    types = dict(C="i32", S="i32", N="i32", K="i32", seed="i64", scarce="*i1")
    types |= dict(clamp="fp32", gamma="fp32", lambda_min="fp32", P="i32")
    half = {"x", "out", "residual", "grad", "grad_x", "grad_residual", "logits", "grad_logits"}
    half -= {"grad"} if kernel == "class_loss" else set()
    constants = dict(
        SCALE="nc", SHIFT="c", LAMBDA="", KAPPA="", FORM="aglu", COLUMNS=columns, UNIT=16,
        BLOCK_C=128 if columns else 1, BLOCK_S=8 if columns else 1024, TILES=4,
    )  # fmt: skip
    if kernel == "reduce":
        constants |= dict(BLOCK_C=64, BLOCK=512)
    if kernel == "class_loss":
        constants = dict(LAMBDA=0, KAPPA=1, BLOCK_N=8, BLOCK_K=128, TILES=4, SIMPLE=not columns)
        unused = "scarce", "share", "grad", "grad_logits", "shift", "weights"
        constants |= {} if columns else dict.fromkeys(unused)
    names = function.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types |= {name: "*bf16" for name in half} | {"gt_classes": "*i64"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names
    }
    divisible = [name for name, kind in signature.items() if kind.startswith("*") or name == "C"]
    source = ASTSource(
        function,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    assert ("ex2.approx.ftz" in ptx or kernel == "reduce") and ".local" not in ptx
    assert "ld.global.v4.b32" in ptx or kernel in ("reduce", "class_loss")
    # max.f32 and min.f32 drop NaN: a constant bound of λ must not use them
    assert not re.search(r"m(ax|in)\.f32[^;]*0f(1E3CE508|FF800000)", ptx)
