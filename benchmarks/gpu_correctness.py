"""Correctness of the kernels on a device, for gpu_check.py: against float64 and autograd."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import apa_det
from apa_det.activation import affine_aglu, apa_cross_entropy, log_apa, logit_apa
from apa_det.kernels.ops import BACKENDS

from .gpu_report import Report

FORMS = {"apa": apa_det.apa, "log_apa": log_apa, "logit_apa": logit_apa, "aglu": apa_det.aglu}
# Largest error of a value, relative to the value itself or to the unit: some units of rounding
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SUM_LIMIT = 1e-5  # of a sum, relative to the sum of the magnitudes
OVERFLOWING = 2**31  # elements, beyond which a 32-bit index overflows


def cases(report: Report) -> Iterator[tuple[str, torch.dtype]]:
    """Yield the backends to check on the device, with dtypes: the kernels, and plain PyTorch."""
    for dtype in LIMITS:
        example = torch.ones(1, 1, dtype=dtype, device=report.device)
        parameter = torch.ones(1, device=report.device)
        kernels = [n for n in BACKENDS if n != "eager"]
        kernels = [n for n in kernels if BACKENDS[n].supports(example, parameter)]
        if report.device.type == "cuda":
            report.expect(f"a kernel for {_name(dtype)}", "triton" in kernels)
        for backend in (*kernels, "eager"):
            yield backend, dtype


def formula(form: str, z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """Compute a form in float64 with autograd."""
    t = lambda_.log() - kappa * z
    log_eta = -F.softplus(t, threshold=700) / lambda_
    if form == "log_apa":
        return log_eta
    if form == "logit_apa":
        return log_eta - torch.log(-torch.expm1(log_eta))
    return log_eta.exp() * (z if form == "aglu" else 1)


def error_of(ours: Tensor, expected: Tensor) -> float:
    """Return the largest error, relative to max(1, |expected|)."""
    if ours.numel() == 0:
        return 0.0
    return ((ours.double() - expected).abs() / expected.abs().clamp(min=1)).max().item()


def error_of_sum(ours: Tensor, terms: Tensor) -> float:
    """Return the largest error of sums over the other dimensions, relative to the magnitudes.

    Args:
        ours: the sums; it broadcasts with the terms.
        terms: float64.
    """
    expected, magnitude = terms.sum_to_size(ours.shape), terms.abs().sum_to_size(ours.shape)
    return ((ours.double() - expected).abs() / magnitude.clamp(min=1e-30)).max().item()


def layouts(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return random tensors of a shape in all layouts."""
    z = (3 * torch.randn(shape, device=device)).to(dtype)
    wider = torch.randn(*shape[:-1], shape[-1] + 1, device=device).to(dtype)
    return {
        "contiguous": z,
        "channels-last": z.contiguous(memory_format=torch.channels_last),
        "sliced": wider[..., 1:],
        "expanded": z[:1, :1].expand(shape),
    }


def check_activation(report: Report) -> None:
    device = report.device
    shapes = [(2, 3, 5, 7)] if report.small else [(2, 3, 5, 7), (2, 256, 25, 34)]
    for backend, dtype in cases(report):
        for form, per_channel in itertools.product(FORMS, (False, True)):
            title = f"{form}, {backend}, {_name(dtype)}, {'per channel' * per_channel or 'shared'}"
            if (per_channel and form.startswith("log")) or not report.has_time(title):
                continue  # each kernel takes a second to compile
            worst, worst_sum = 0.0, 0.0
            for shape in shapes:
                for name, z in layouts(shape, dtype, device).items():
                    # The kernels take dense tensors; without a name, the backend is chosen
                    is_dense = name in ("contiguous", "channels-last")
                    error = _activation_errors(form, z, per_channel, backend if is_dense else None)
                    worst, worst_sum = max(worst, error[0]), max(worst_sum, error[1])
            report.check(title, worst, LIMITS[dtype])
            report.check(f"{title}, gradients of λ and κ", worst_sum, SUM_LIMIT)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _curve(shape: tuple[int, ...], per_channel: bool, device: torch.device) -> list[Tensor]:
    size = (1, shape[1], 1, 1) if per_channel else (1,)
    lambda_ = torch.rand(size, device=device) * 0.9 + 0.05
    return [lambda_.requires_grad_(), (torch.rand(size, device=device) + 0.5).requires_grad_()]


def _activation_errors(
    form: str, z: Tensor, per_channel: bool, backend: str | None
) -> tuple[float, float]:
    """Return the errors of the value and the gradient of z, and of those of λ and κ."""
    z = z.detach().requires_grad_()
    curve = _curve(tuple(z.shape), per_channel, z.device)
    out = FORMS[form](z, *curve, backend=backend)
    grad = torch.randn(z.shape, device=z.device).to(z.dtype)
    ours = torch.autograd.grad(out, [z, *curve], grad)
    exact = [t.detach().double().expand(z.shape).clone().requires_grad_() for t in (z, *curve)]
    expected = formula(form, *exact)
    terms = torch.autograd.grad(expected, exact, grad.double())
    value = max(error_of(out, expected), error_of(ours[0], terms[0]))
    return value, max(error_of_sum(a, b) for a, b in zip(ours[1:], terms[1:], strict=True))


def check_affine(report: Report) -> None:
    device = report.device
    shapes = [(2, 4, 3, 5)] if report.small else [(2, 4, 3, 5), (2, 64, 50, 68)]
    options = itertools.product(cases(report), (True, False), (True, False))
    for (backend, dtype), has_residual, per_image in options:
        title = f"affine_aglu, {backend}, {_name(dtype)}"
        title += ", residual" * has_residual + ", scale per image" * per_image
        is_whole = has_residual and per_image
        if not (is_whole or dtype == torch.float32) or not report.has_time(title):
            continue
        worst, worst_sum = 0.0, 0.0
        for shape in shapes:
            for x in [*layouts(shape, dtype, device).values()][:2]:
                error = _affine_errors(x, has_residual, per_image, backend)
                worst, worst_sum = max(worst, error[0]), max(worst_sum, error[1])
        report.check(title, worst, LIMITS[dtype])
        report.check(f"{title}, gradients of parameters", worst_sum, SUM_LIMIT)


def _affine_errors(
    x: Tensor, has_residual: bool, per_image: bool, backend: str
) -> tuple[float, float]:
    n, c, _, _ = x.shape
    scale = torch.rand(n if per_image else 1, c, 1, 1, device=x.device).add(0.5).requires_grad_()
    shift = torch.randn(1, c, 1, 1, device=x.device).requires_grad_()
    curve = _curve(tuple(x.shape), False, x.device)
    inputs = [x.detach().requires_grad_(), scale, shift, *curve]
    residual = torch.randn_like(x).requires_grad_() if has_residual else None
    out = affine_aglu(*inputs[:3], residual, *curve, backend=backend)
    grad = torch.randn_like(x)
    tensors = inputs + [residual] * has_residual
    ours = torch.autograd.grad(out, tensors, grad)
    exact = [t.detach().double().expand(x.shape).clone().requires_grad_() for t in tensors]
    x_, scale_, shift_, lambda_, kappa, *rest = exact
    expected = formula("aglu", scale_ * x_ + shift_ + sum(rest), lambda_, kappa)
    terms = torch.autograd.grad(expected, exact, grad.double())
    wide = [error_of(a, b) for a, b in zip(ours, terms, strict=True) if a.shape == x.shape]
    sums = [error_of_sum(a, b) for a, b in zip(ours, terms, strict=True) if a.shape != x.shape]
    return max(wide + [error_of(out, expected)]), max(sums)


def check_class_loss(report: Report) -> None:
    device = report.device
    sizes = [(6, 5), (33, 130)] if report.small else [(6, 5), (33, 130), (1024, 1203)]
    for backend, dtype in cases(report):
        for kind in ("shared", "per class", "clamp", "DropLoss keeps", "DropLoss drops"):
            title = f"class loss, {backend}, {_name(dtype)}, {kind}"
            if not report.has_time(title):
                continue
            errors = [_class_loss_errors(n, k, kind, dtype, device, backend) for n, k in sizes]
            report.check(title, max(e for e, _ in errors), SUM_LIMIT)
            report.check(f"{title}, gradients", max(e for _, e in errors), LIMITS[dtype])


def _class_loss_errors(
    n: int, k: int, kind: str, dtype: torch.dtype, device: torch.device, backend: str
) -> tuple[float, float]:
    """Return the relative error of the loss, and the largest of its gradients."""
    logits = (2 * torch.randn(n, k, device=device)).to(dtype).requires_grad_()
    gt_classes = torch.randint(k + 1, (n,), device=device)
    size = (k,) if kind == "per class" else (1,)
    curve = [(torch.rand(size, device=device) + 0.3).requires_grad_() for _ in range(2)]
    scarce = torch.arange(k, device=device) % 2 == 0
    clamp, kwargs = (1.5 if kind == "clamp" else 0.0), {}
    weights = torch.ones(n, k, dtype=torch.float64, device=device)
    targets = F.one_hot(gt_classes, k + 1)[:, :k].double()
    if kind.startswith("DropLoss"):
        keeps = kind.endswith("keeps")
        kwargs = {"scarce": scarce, "share": torch.tensor(float(keeps), device=device)}
        is_foreground = (gt_classes < k)[:, None]
        dropped = scarce & (targets == 0) & (is_foreground | (not keeps))
        weights[dropped] = 0
    loss = apa_cross_entropy(logits, gt_classes, *curve, clamp=clamp, backend=backend, **kwargs)
    ours = torch.autograd.grad(loss, [logits, *curve])
    exact = [t.detach().double().requires_grad_() for t in (logits, *curve)]
    z = exact[0].clamp(-clamp, clamp) if clamp else exact[0]
    log_eta = formula("log_apa", z, *exact[1:])
    log_rest = torch.log(-torch.expm1(log_eta))
    expected = -(weights * (targets * log_eta + (1 - targets) * log_rest)).sum()
    gradients = torch.autograd.grad(expected, exact)
    scales = [1.0, *(g.abs().max().item() + n for g in gradients[1:])]
    errors = [
        (a.double() - b).abs().max().item() / max(b.abs().max().item(), scale)
        for a, b, scale in zip(ours, gradients, scales, strict=True)
    ]
    return abs(loss.item() - expected.item()) / abs(expected.item()), max(errors)


class _Recorder(TorchDispatchMode):
    """Records the first call of each apa_det operator per kind of arguments."""

    def __init__(self):
        super().__init__()
        self.calls: dict[tuple, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "apa_det":
            kinds = [(a.dtype, a.stride()) if isinstance(a, Tensor) else a for a in args]
            self.calls.setdefault((str(function), str(kinds)), (function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def check_operators(report: Report) -> None:
    """Run torch.library.opcheck on every call that the public functions make."""
    for name, call in _small_calls(report.device, report.small):
        recorder = _Recorder()
        with recorder:
            call()
        faults = []
        for function, args, kwargs in recorder.calls.values():
            fixed = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
            if "backward" not in str(function):
                fixed = [
                    a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
                    for a in fixed
                ]
            try:
                torch.library.opcheck(function, tuple(fixed), kwargs)
            except Exception as error:
                faults.append(f"{function}: {error}"[:1000])
        names = ", ".join(sorted({str(f).split(".")[-2] for f, _, _ in recorder.calls.values()}))
        report.expect(f"{name} ({names})", bool(recorder.calls) and not faults, "; ".join(faults))


def _small_calls(device: torch.device, small: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    dtypes = [torch.float32] if small else LIMITS
    for dtype, layout in itertools.product(dtypes, ("contiguous", "channels-last")):
        x = layouts((2, 3, 4, 5), dtype, device)[layout]
        mixed = torch.randn_like(x).contiguous()
        for per_channel in (False, True):
            title = f"{_name(dtype)}, {layout}, {'per channel' * per_channel or 'shared'}"
            yield f"activation, {title}", partial(_run_activation, x, mixed, per_channel)
        yield f"affine, {_name(dtype)}, {layout}, mixed", partial(_run_affine, x, mixed)
    yield (
        "class loss",
        partial(_class_loss_errors, 4, 6, "DropLoss keeps", dtypes[0], device, None)
        if small
        else partial(_class_loss_errors, 4, 6, "per class", torch.float32, device, None),
    )


def _run_activation(x: Tensor, grad: Tensor, per_channel: bool) -> None:
    curve = _curve(tuple(x.shape), per_channel, x.device)
    x = x.detach().requires_grad_()
    torch.autograd.grad(apa_det.aglu(x, *curve), [x, *curve], grad)


def _run_affine(x: Tensor, mixed: Tensor) -> None:
    c = x.shape[1]
    parameters = [torch.rand(1, c, 1, 1, device=x.device, requires_grad=True) for _ in range(2)]
    curve = _curve(tuple(x.shape), False, x.device)
    inputs = [x.detach().requires_grad_(), *parameters, mixed.detach().requires_grad_(), *curve]
    torch.autograd.grad(affine_aglu(*inputs), inputs, mixed)


def check_sizes(report: Report) -> None:
    """Check tensors of more than 2^31 elements, in parts; in the small form, of a few thousand."""
    number = 5000 if report.small else OVERFLOWING + 3 * 2**20
    needed = 12 * number  # input, output, gradient and its input in bfloat16, and parts in float64
    if report.free_bytes() < needed + 6e9 and not report.small:
        report.skip("activation", f"it needs {(needed + 6e9) / 1e9:.0f} GB")
        return
    side = 2**10 if not report.small else 5
    shape = (1, side, math.ceil(number / side), 1)
    for layout in ("contiguous", "channels-last"):
        if report.has_time(layout):
            value, sums = _large_activation_errors(shape, layout, report.device)
            title = f"AGLU of {math.prod(shape):,} elements, {layout}"
            report.check(title, value, LIMITS[torch.bfloat16])
            report.check(f"{title}, gradients of λ and κ", sums, 1e-4)
    classes = 1203 if not report.small else 5
    if report.has_time("class loss"):
        rows = math.ceil(number / classes)
        error = _large_class_loss_error(rows, classes, report.device)
        report.check(f"class loss of {rows * classes:,} elements", error, 1e-4)


def _large_activation_errors(
    shape: tuple[int, ...], layout: str, device: torch.device
) -> tuple[float, float]:
    z = torch.randn(shape, dtype=torch.bfloat16, device=device)
    if layout == "channels-last":
        n, c, h, w = shape
        z = z.view(n, h, w, c).permute(0, 3, 1, 2)
    z.requires_grad_()
    curve = [torch.tensor([v], device=device, requires_grad=True) for v in (0.5, 1.1)]
    out = apa_det.aglu(z, *curve)
    grad = torch.ones((), dtype=out.dtype, device=device).expand(out.shape)
    ours = torch.autograd.grad(out, [z, *curve], torch.empty_like(out).copy_(grad))
    worst, sums, magnitudes = 0.0, torch.zeros(2).double(), torch.zeros(2).double()
    for start in range(0, shape[2], part := max(1, 2**24 // shape[1])):
        rows = slice(start, start + part)
        local = z.detach()[:, :, rows].double()
        exact = [local.requires_grad_()]
        exact += [t.detach().double().expand(local.shape).clone().requires_grad_() for t in curve]
        expected = formula("aglu", *exact)
        terms = torch.autograd.grad(expected.sum(), exact)
        worst = max(worst, error_of(out[:, :, rows], expected))
        worst = max(worst, error_of(ours[0][:, :, rows], terms[0]))
        sums += torch.stack([t.sum() for t in terms[1:]]).cpu()
        magnitudes += torch.stack([t.abs().sum() for t in terms[1:]]).cpu()
    found = torch.stack(ours[1:]).flatten().double().cpu()
    return worst, ((found - sums).abs() / magnitudes).max().item()


def _large_class_loss_error(rows: int, classes: int, device: torch.device) -> float:
    logits = torch.randn(rows, classes, dtype=torch.bfloat16, device=device).requires_grad_()
    gt_classes = torch.randint(classes + 1, (rows,), device=device)
    loss = apa_cross_entropy(logits, gt_classes, 0.0, 1.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    total, worst = 0.0, 0.0
    for start in range(0, rows, part := max(1, 2**24 // classes)):
        local = logits.detach()[start : start + part].double().requires_grad_()
        targets = F.one_hot(gt_classes[start : start + part], classes + 1)[:, :classes].double()
        log_eta = -torch.exp(-local)
        log_rest = torch.log(-torch.expm1(log_eta))
        expected = -(targets * log_eta + (1 - targets) * log_rest).sum()
        (exact,) = torch.autograd.grad(expected, local)
        total += expected.item()
        worst = max(worst, error_of(gradient[start : start + part], exact))
    return max(abs(loss.item() - total) / total, worst * SUM_LIMIT / LIMITS[torch.bfloat16])
