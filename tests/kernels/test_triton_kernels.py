"""The kernels in Triton: on a GPU where there is one, otherwise interpreted, in another process.

Triton decides on import whether it interprets. Its interpreter rounds 2^x and 1/√x correctly, never
flushes to zero, propagates NaN everywhere and cuts off what bfloat16 lacks: here it does as a GPU.
"""

import itertools
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apa_det.activation import aglu, apa_cross_entropy, logit_apa
from apa_det.kernels import eager, triton_kernels

triton = pytest.importorskip("triton")

FORMS = ["apa", "log_apa", "logit_apa", "aglu"]
ULP = 2.0**-23
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS_HERE = INTERPRETED or torch.cuda.is_available()

on_device = pytest.mark.skipif(not RUNS_HERE, reason="test_interpreted runs it")


@pytest.mark.skipif(RUNS_HERE, reason="the other tests run here")
def test_interpreted():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def approximate(monkeypatch):
    if not INTERPRETED:
        return
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
    """Of the same kind and shape, but for a share of the largest value; sums cancel out."""
    assert (ours is None) == (reference is None)
    if ours is not None:
        assert ours.shape == reference.shape
        tolerance = 1e-5 * max([1.0, *reference.abs().flatten().tolist()])
        torch.testing.assert_close(ours.double(), reference.double(), rtol=0, atol=tolerance)


def double(tensors):
    return [
        t.double() if isinstance(t, torch.Tensor) and t.dtype == torch.float else t for t in tensors
    ]


def exact(form, z, lambda_, kappa):
    """The value and its derivatives with respect to z, λ and κ, in mpmath."""
    z, lambda_, kappa = map(mpmath.mpf, (z, lambda_, kappa))
    x = lambda_ * mpmath.exp(-kappa * z)
    y = mpmath.log1p(x) / lambda_
    s = x / (1 + x) / lambda_
    slopes = kappa * s, (y - s) / lambda_, z * s  # of log η
    if form == "log_apa":
        return (-y, *slopes)
    eta = mpmath.exp(-y)
    if form == "apa":
        return (eta, *(eta * slope for slope in slopes))
    return (z * eta, eta + z * eta * slopes[0], *(z * eta * slope for slope in slopes[1:]))


@on_device
@pytest.mark.parametrize("form", ["apa", "log_apa", "aglu"])
def test_backward_stable(form):
    """As in test_activation.py, at fewer points: a channel for each."""
    mpmath.mp.dps = 60
    magnitudes = np.logspace(-6, 4, 6)
    zs = np.float32([0.0, *magnitudes, *-magnitudes]).tolist()
    lambdas = np.float32([1e-8, 1e-4, 1e-2, 0.3, 0.5, 1, 10]).tolist()
    kappas = np.float32([-3, -1e-3, 0.1, 1, 5]).tolist()
    points = list(itertools.product(zs, lambdas, kappas))
    inputs = torch.tensor(points, device=DEVICE).T[:, None].contiguous().unbind()
    out = triton_kernels.forward(form, *inputs)
    gradients = triton_kernels.backward(form, torch.ones_like(out), *inputs)
    results = torch.cat([out, *gradients]).T.double().tolist()
    wiggles = [1 - 64 * ULP, 1, 1 + 64 * ULP]
    for point, result in zip(points, results, strict=True):
        expected = exact(form, *point)
        around = None
        for k, (value, true) in enumerate(zip(result, expected, strict=True)):
            error = abs(value - true) - 4 * ULP * abs(true)
            if abs(true) > torch.finfo(torch.float32).max or error <= 1e-20:
                continue
            around = around or [
                exact(form, *(p * w for p, w in zip(point, wiggle, strict=True)))
                for wiggle in itertools.product(wiggles, repeat=3)
            ]
            assert error <= max(abs(a[k] - true) for a in around), (point, k, value, float(true))


@on_device
@pytest.mark.parametrize("form", FORMS)
def test_finite(form):
    """No NaN for any finite input, no Inf where the true value is finite, and NaN for NaN."""
    z = torch.cat([torch.logspace(-30, 38, 40), torch.zeros(1)])
    z = torch.cat([z, -z]).to(DEVICE)
    grid = itertools.product([0, 1e-20, 1e-8, 1e-4, 0.1, 1, 100], [-3.0, -1, 0, 1, 5])
    lambda_, kappa = torch.tensor(list(grid), device=DEVICE).T[:, None].contiguous().unbind()
    z = z[:, None].expand(-1, kappa.numel()).contiguous()
    out = triton_kernels.forward(form, z, lambda_, kappa)
    moderate = (z * kappa).abs() < (torch.inf if form in ("apa", "aglu") else 1e4)
    assert not out.isnan().any() and out[moderate].isfinite().all()
    z = z.reshape(-1, 1, kappa.numel())
    for row in z[::5]:
        gradients = triton_kernels.backward(form, torch.ones_like(row), row, lambda_, kappa)
        assert not any(g.isnan().any() for g in gradients)

    z = torch.tensor([torch.nan, 1.0], device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    gradients = triton_kernels.backward(form, torch.ones_like(z), z, one, one)
    for t in (triton_kernels.forward(form, z, one, one), gradients[0]):
        assert t.isnan().tolist() == [True, False]
    assert all(g.isnan() for g in gradients[1:])
    assert triton_kernels.forward(form, z[1:], -one, one).isnan()


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_types_round_once(form, dtype):
    z = torch.linspace(-200, 200, 201, device=DEVICE).to(dtype)[:, None].expand(-1, 16).contiguous()
    grid = list(itertools.product([1e-4, 0.03, 1, 3], [-1, 0.5, 1.1, 3]))
    lambda_, kappa = torch.tensor(grid, device=DEVICE).T[:, None].contiguous().unbind()
    out = triton_kernels.forward(form, z, lambda_, kappa)
    assert torch.equal(out, triton_kernels.forward(form, z.float(), lambda_, kappa).to(dtype))
    grad = torch.randn(z.shape, device=DEVICE).to(dtype)
    half = triton_kernels.backward(form, grad, z, lambda_, kappa)[0]
    single = triton_kernels.backward(form, grad.float(), z.float(), lambda_, kappa)[0]
    assert half.dtype == dtype and torch.equal(half, single.to(dtype))
    if form in ("apa", "aglu"):
        assert out.isfinite().all() and half.isfinite().all()


SHAPES = {
    "row": (1500,),
    "rows": (2, 5, 7, 9),
    "long rows": (1, 2, 33, 36),
    "columns": (2, 5, 7, 9),
    "many columns": (1, 140, 3, 4),
    "no rows": (3, 6),
    "places": (3, 6, 1, 1),
    "volume": (2, 3, 2, 4, 5),
    "one": (1, 1, 1, 1),
    "number": (),
    "empty": (0, 5, 2, 2),
    "no places": (2, 5, 0, 2),
}


def tensor_of(name):
    x = 3 * torch.randn(SHAPES[name], device=DEVICE)
    return x.to(memory_format=torch.channels_last) if "columns" in name else x


def parameter_of(x, along, low=-1.0):
    """A parameter that differs along some of the first two dimensions, "n" and "c"."""
    shape = [size if name in along else 1 for size, name in zip(x.shape, "nc", strict=False)]
    return torch.empty(shape + [1] * (x.dim() - 2), device=DEVICE).uniform_(low, 1.5)


@on_device
@pytest.mark.parametrize("along", ["", "c", "nc"])
@pytest.mark.parametrize("name", SHAPES)
def test_layouts_and_sizes(name, along):
    torch.manual_seed(0)
    z = tensor_of(name)
    if along and z.dim() < 2:
        pytest.skip("has no channels")
    parameters = parameter_of(z, along, 0.01), parameter_of(z, along)
    assert triton_kernels.supports(z, *parameters)
    grad = torch.randn(z.shape, device=DEVICE)  # which may lie in memory in another way
    for form in FORMS if name == "rows" else ["aglu"]:
        out = triton_kernels.forward(form, z, *parameters)
        assert out.stride() == torch.empty_like(z).stride()
        assert_close(out, eager.forward(form, *double([z, *parameters])))
        ours = triton_kernels.backward(form, grad, z, *parameters)
        expected = eager.backward(form, *double([grad, z, *parameters]))
        assert [g.shape for g in ours] == [t.shape for t in (z, *parameters)]
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


@on_device
@pytest.mark.parametrize("alongs", ["c c  ", "nc nc c ", "nc c  nc", "n c n c"])
@pytest.mark.parametrize("name", ["rows", "columns", "places", "empty"])
def test_affine_aglu(name, alongs):
    torch.manual_seed(0)
    x = tensor_of(name)
    parameters = [parameter_of(x, along, 0.01) for along in alongs.split(" ")]
    residual, grad = torch.randn(x.shape, device=DEVICE), torch.randn(x.shape, device=DEVICE)
    for shortcut in (None, residual):
        inputs = [x, *parameters[:2], shortcut, *parameters[2:]]
        assert_close(
            triton_kernels.affine_aglu_forward(*inputs), eager.affine_aglu_forward(*double(inputs))
        )
        ours = triton_kernels.affine_aglu_backward(grad, *inputs)
        expected = eager.affine_aglu_backward(*double([grad, *inputs]))
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


@on_device
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("each,limit", [(4, 99), (1, 2)])
def test_programs_with_many_tiles(channels_last, each, limit, monkeypatch):
    for name, value in dict(ENOUGH_TILES=1, TILES=each, MAX_TILES=limit, TILE_CHANNELS=1).items():
        monkeypatch.setattr(triton_kernels, f"_{name}", value)
    x = torch.randn(1, 2, 64, 63, device=DEVICE)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    inputs = [x, *(parameter_of(x, along, 0.01) for along in ("c", "c", "", ""))]
    inputs.insert(3, None)
    grad = torch.randn_like(x)
    ours = triton_kernels.affine_aglu_backward(grad, *inputs)
    expected = eager.affine_aglu_backward(*double([grad, *inputs]))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


@on_device
def test_only_what_is_needed_and_the_same_every_time():
    z, grad = torch.randn(2, 2, 4, 15, 10, device=DEVICE)
    parameters = torch.tensor(0.5, device=DEVICE), torch.tensor([1.1], device=DEVICE)
    whole = triton_kernels.backward("aglu", grad, z, *parameters)
    for needs in itertools.product([True, False], repeat=3):
        some = triton_kernels.backward("aglu", grad, z, *parameters, needs)
        for part, gradient, need in zip(some, whole, needs, strict=True):
            assert torch.equal(part, gradient) if need else part is None


@on_device
def test_chosen_by_name():
    z = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)
    lambda_ = torch.tensor(0.5, device=DEVICE, requires_grad=True)

    def function(z, lambda_):
        return aglu(z, lambda_, 1.1, backend="triton").sum()

    expected = torch.autograd.grad(aglu(z, lambda_, 1.1, backend="eager").sum(), [z, lambda_])
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for f in (function, compiled):
        for a, b in zip(torch.autograd.grad(f(z, lambda_), [z, lambda_]), expected, strict=True):
            assert_close(a, b)


@on_device
def test_what_it_does_not_take():
    x, one = torch.randn(2, 3, 4, 4, device=DEVICE), torch.ones((), device=DEVICE)
    assert triton_kernels.supports(x, one, one)
    for other in (x.double(), x.transpose(2, 3), x[..., ::2], x.long()):
        assert not triton_kernels.supports(other, one, one)
    for shape in [(4,), (3, 1, 4), (1, 1, 4, 1), (2, 1, 1, 1, 1), (1, 2, 1, 1)]:
        assert not triton_kernels.supports(x, one.expand(shape), one)
    assert not triton_kernels.supports(x, one.double(), one)
    x = one.expand(65536, 3, 2, 2)
    assert not triton_kernels.supports(x.contiguous(), one.expand(3, 1, 1), one)


def bce(logits, gt_classes, lambda_, kappa, weights, clamp):
    targets = F.one_hot(gt_classes, logits.shape[1] + 1)[:, :-1].double()
    log_odds = logit_apa(logits.clamp(-clamp, clamp), lambda_, kappa, backend="eager")
    return F.binary_cross_entropy_with_logits(log_odds, targets, weights, reduction="sum")


@on_device
@pytest.mark.parametrize(
    "n,k,per_class,clamp,share",
    [
        (37, 130, "", 0.0, None),
        (20, 130, "", 3.0, 0.0),
        (20, 130, "", 0.0, 1.0),
        (20, 130, "λκ", 3.0, None),
        (10, 5, "λκ", 3.0, 1.0),
        (10, 5, "κ", 0.0, 0.0),
        (1, 1, "λ", 0.0, None),
    ],
)
def test_class_loss(n, k, per_class, clamp, share):
    torch.manual_seed(0)
    logits = 4 * torch.randn(n, k)
    gt_classes = torch.randint(0, k + 1, (n,))
    gt_classes[::2] = k
    lambda_ = torch.rand(1, k) if "λ" in per_class else torch.zeros(1)
    kappa = torch.rand(k) + 0.5 if "κ" in per_class else torch.ones(())
    scarce = None if share is None else torch.rand(k) < 0.6
    weights = torch.ones(n, k)
    if scarce is not None:
        dropped = scarce & (gt_classes[:, None] != torch.arange(k))
        dropped &= (gt_classes[:, None] < k) | (share == 0)
        weights[dropped] = 0
    leaves = [t.double().requires_grad_() for t in (logits, lambda_, kappa)]
    expected = bce(leaves[0], gt_classes, *leaves[1:], weights, clamp or torch.inf)
    gradients = torch.autograd.grad(0.7 * expected, leaves)

    inputs = [logits, gt_classes, lambda_, kappa, scarce]
    inputs = [t if t is None else t.to(DEVICE) for t in inputs]
    inputs += [None if share is None else torch.tensor(share, device=DEVICE), 7, clamp]
    assert_close(triton_kernels.class_loss_forward(*inputs).cpu(), expected)
    grad = torch.tensor(0.7, device=DEVICE)
    ours = triton_kernels.class_loss_backward(grad, *inputs)
    for a, b in zip(ours, gradients, strict=True):
        assert_close(a.cpu(), b)


@on_device
def test_class_loss_far_out():
    """A confident mistake costs |z|, in float32 too, and the right score nothing."""
    z = torch.tensor([[-1e4, -50.0, 50.0, 1e4]], device=DEVICE)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    background = torch.tensor([4], device=DEVICE)
    for lambda_ in (one, zero):
        for column in range(4):
            inputs = z[:, column : column + 1].contiguous(), background - 3, lambda_, one
            loss = triton_kernels.class_loss_forward(*inputs, None, None, 0, 0.0).item()
            assert loss == pytest.approx(max(z[0, column].item(), 0))
            slope = triton_kernels.class_loss_backward(one, *inputs, None, None, 0, 0.0)[0].item()
            assert slope == pytest.approx(float(z[0, column] > 0), abs=1e-6)
    empty = z[:0], background[:0], one, one, None, None, 0, 0.0
    assert triton_kernels.class_loss_forward(*empty) == 0
    assert [g.shape for g in triton_kernels.class_loss_backward(one, *empty)] == [
        (0, 4),
        (1,),
        (1,),
    ]


@on_device
def test_draws_of_drop_loss():
    """A fresh share of each scarce class in the background, the same in both passes."""
    n, k = 60, 100
    z, one = torch.zeros(n, k, device=DEVICE), torch.ones(1, device=DEVICE)
    gt_classes = torch.full((n,), k, device=DEVICE)
    scarce = torch.arange(k, device=DEVICE) < 75
    kept = []
    for seed in (3, 2**62 - 1):
        inputs = z, gt_classes, one, one, scarce, torch.tensor(0.3, device=DEVICE), seed, 0.0
        kept.append(triton_kernels.class_loss_backward(one, *inputs)[0] != 0)
        loss = triton_kernels.class_loss_forward(*inputs)
        assert loss.item() == pytest.approx(kept[-1].sum().item() * np.log(2), rel=1e-5)
        assert kept[-1][:, 75:].all()
        shares = kept[-1][:, :75].float()
        assert abs(shares.mean() - 0.3) < 0.03
        assert (shares.mean(dim=0) - 0.3).abs().max() < 0.3  # 5 standard deviations
        assert (shares.mean(dim=1) - 0.3).abs().max() < 0.27
    assert 0.5 < (kept[0] == kept[1])[:, :75].float().mean() < 0.66


@on_device
def test_class_loss_chosen_by_name():
    logits = torch.randn(8, 6, device=DEVICE, requires_grad=True)
    gt_classes = torch.arange(8, device=DEVICE).clamp(max=6)
    losses = [apa_cross_entropy(logits, gt_classes, 0, 1, backend=b) for b in ("triton", "eager")]
    assert_close(*losses)
    assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter can begin at any program")
def test_beyond_2_to_the_31_elements(monkeypatch):
    """The last tile of a tensor whose pages, but for the last, are never touched."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    size, block = 2**31 + 48, 2048
    z = torch.empty(size, dtype=torch.float16)
    z[-100:] = torch.linspace(-3, 3, 100)
    first = (size - 1) // block

    def program(self, axis):
        number = first if axis == 0 else 0
        return TensorHandle(np.array([number], dtype=np.int32), triton.language.int32)

    one = torch.ones(1)
    expected = aglu(z[-100:].clone(), 1, 1, backend="eager")
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", program)
    monkeypatch.setattr(triton_kernels, "_ceil", lambda a, b: 1)
    monkeypatch.setattr(triton_kernels, "_NUM_THREADS", block // 16)
    triton_kernels._launch_forward("aglu", z, None, None, None, one, one, z)
    assert torch.equal(z[-48:], expected[-48:])


@pytest.mark.skipif(INTERPRETED, reason="compiled elsewhere")
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "backward", "class_loss"])
def test_compiles(kernel, columns):
    """For a GPU of compute capability 8.0, without one; with vector loads, and no stack."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apa_det.kernels import triton_class_loss, triton_device

    module = triton_class_loss if kernel == "class_loss" else triton_device
    function = getattr(module, kernel)
    types = dict(C="i32", S="i32", N="i32", K="i32", seed="i64", clamp="fp32", scarce="*i1")
    half = {"x", "out", "residual", "grad", "grad_x", "grad_residual", "logits", "grad_logits"}
    half -= {"grad"} if kernel == "class_loss" else set()
    constants = dict(
        SCALE="nc", SHIFT="c", LAMBDA="", KAPPA="", FORM="aglu", COLUMNS=columns, UNIT=16,
        BLOCK_C=128 if columns else 1, BLOCK_S=8 if columns else 1024, TILES=4,
    )  # fmt: skip
    if kernel == "class_loss":
        constants = dict(LAMBDA=0, KAPPA=1, BLOCK_N=8, BLOCK_K=128, TILES=4)
        constants |= {} if columns else dict(scarce=None, share=None, grad=None, grad_logits=None)
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
    assert "ex2.approx.ftz" in ptx and ".local" not in ptx
    assert "ld.global.v4.b32" in ptx or kernel == "class_loss"
