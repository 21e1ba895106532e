"""The class loss as custom operator ``torch.ops.apa_det.class_loss``, with fake and gradient.

Its argument ``backend`` names one of :data:`BACKENDS`, or is "auto". All arguments are checked
here, so a backend gets contiguous tensors of the right dtype, shape and device.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import eager_class_loss, native_class_loss, native_library, triton_kernels
from .backends import select_backend
from .checks import FLOATS, check_tensor
from .eager_class_loss import Inputs

BACKENDS: dict[str, ModuleType] = {
    "eager": eager_class_loss,
    "native": native_class_loss,
    "triton": triton_kernels,
}

_LIBRARY = torch.library.Library("apa_det", "FRAGMENT")
_ARGUMENTS = (
    "Tensor logits, Tensor gt_classes, Tensor lambda_, Tensor kappa, Tensor? weights, "
    "Tensor? shift, Tensor? positive_weights, Tensor? negative_weights, Tensor? scarce, "
    "Tensor? share, Tensor? seed, float gamma, float clamp, str backend"
)


def _class_loss(*arguments) -> Tensor:
    inputs, backend = _checked("class_loss", *arguments)
    if backend == "eager" and inputs.logits.device.type == "cpu":
        native_library.warn_if_missing()
    return _with_nan_of(inputs.share, BACKENDS[backend].class_loss_forward(inputs))


def _class_loss_backward(grad: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    inputs, backend = _checked("class_loss_backward", *arguments)
    lambda_ = inputs.lambda_
    check_tensor(
        "class_loss_backward",
        "grad",
        grad,
        dtypes=[lambda_.dtype],
        shapes=[()],
        device=lambda_.device,
    )
    grad = _with_nan_of(inputs.share, grad)
    return BACKENDS[backend].class_loss_backward(grad, inputs)


def _with_nan_of(share: Tensor | None, value: Tensor) -> Tensor:
    """Return the value, or NaN if the share is NaN, which no draw exceeds."""
    return value if share is None else value + 0 * share


def _checked(operator: str, *arguments) -> tuple[Inputs, str]:
    """Check all arguments; return contiguous inputs and the backend.

    Raises:
        TypeError: a tensor has another dtype than documented in :class:`Inputs`.
        ValueError: a tensor has another shape or device, a label or number is out of range,
            arguments of DropLoss are missing, or the backend does not support the tensors.
    """
    inputs, backend = Inputs(*arguments[:-1]), arguments[-1]
    logits, dtype, device = inputs.logits, inputs.lambda_.dtype, inputs.logits.device

    def check(name: str, dtypes: list[torch.dtype], *shapes: tuple[int, ...], on=device) -> None:
        tensor = getattr(inputs, name)
        if tensor is None:
            return
        if tensor.layout != torch.strided:
            raise ValueError(
                f"{name} of apa_det::{operator} must be a dense tensor, got {tensor.layout}."
            )
        check_tensor(operator, name, tensor, dtypes=dtypes, shapes=shapes, device=on)

    check("logits", FLOATS)
    if logits.dim() != 2:
        raise ValueError(
            f"logits of apa_det::{operator} must have shape (N, K), got {tuple(logits.shape)}."
        )
    n, k = logits.shape
    check("gt_classes", [torch.int64], (n,))
    is_double = logits.dtype == torch.float64
    curve_dtypes = [torch.float64] if is_double else [torch.float32, torch.float64]
    check("lambda_", curve_dtypes, (), (1,), (1, 1), (k,), (1, k))
    check("kappa", [dtype], (), (1,), (1, 1), (k,), (1, k))
    check("weights", [dtype], (n,))
    for name in ("shift", "positive_weights", "negative_weights"):
        check(name, [dtype], (k,))
    check("scarce", [torch.bool], (k,))
    check("share", [torch.float32], ())
    check("seed", [torch.int64], (), on=torch.device("cpu"))
    if sum(t is None for t in (inputs.scarce, inputs.share, inputs.seed)) not in (0, 3):
        raise ValueError(
            f"scarce, share and seed of apa_det::{operator} belong together: give all or none."
        )
    if not (inputs.gamma >= 0 and inputs.clamp >= 0):
        raise ValueError(
            f"gamma and clamp of apa_det::{operator} must be >= 0, got {inputs.gamma} and "
            f"{inputs.clamp}."
        )
    _check_labels(operator, inputs.gt_classes, k)
    inputs = Inputs(*(t.contiguous() if isinstance(t, Tensor) else t for t in inputs))
    return inputs, select_backend(backend, inputs.logits, inputs.lambda_, inputs.kappa)


def _check_labels(operator: str, gt_classes: Tensor, num_classes: int) -> None:
    expected = f"gt_classes of apa_det::{operator} must be in [0, {num_classes}]"
    if gt_classes.device.type == "cuda":  # without synchronization, as in torch's cross_entropy
        in_range = (gt_classes >= 0) & (gt_classes <= num_classes)
        torch._assert_async(in_range.all(), f"{expected}.")
    elif gt_classes.numel():
        low, high = map(int, gt_classes.aminmax())
        if low < 0 or high > num_classes:
            raise ValueError(f"{expected}, got {low if low < 0 else high}.")


def _save(ctx, inputs, output) -> None:
    constants = Inputs._fields[4:10]
    if any(ctx.needs_input_grad[4:10]):
        trained = [n for n, t in zip(constants, inputs[4:10], strict=True) if _is_trained(t)]
        raise RuntimeError(
            f"apa_det::class_loss has no gradient for {' and '.join(trained)}: detach it."
        )
    ctx.save_for_backward(*inputs[:11])
    ctx.settings = inputs[11:]


def _is_trained(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    by_logits, by_lambda, by_kappa = torch.ops.apa_det.class_loss_backward(
        grad, *ctx.saved_tensors, *ctx.settings
    )
    needs_logits, _, needs_lambda, needs_kappa, *others = ctx.needs_input_grad
    return (
        by_logits if needs_logits else None,
        None,
        by_lambda if needs_lambda else None,
        by_kappa if needs_kappa else None,
        *(None for _ in others),
    )


def _raise_on_double_backward(ctx, *grads) -> None:
    raise RuntimeError("apa_det::class_loss does not support second derivatives.")


def _define(name: str, schema: str, implementation, fake, gradients, setup_context=None) -> None:
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    name = f"apa_det::{name}"
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    torch.library.register_autograd(name, gradients, setup_context=setup_context, lib=_LIBRARY)


_define(
    "class_loss",
    f"({_ARGUMENTS}) -> Tensor",
    _class_loss,
    lambda logits, gt_classes, lambda_, *others: lambda_.new_empty(()),
    _gradients,
    _save,
)
_define(
    "class_loss_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _class_loss_backward,
    lambda grad, logits, gt_classes, lambda_, kappa, *others: tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (logits, lambda_, kappa)
    ),
    _raise_on_double_backward,
)

class_loss = torch.ops.apa_det.class_loss.default
