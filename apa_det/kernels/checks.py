"""Checks of the tensors that operators take, the same for all backends.

Kernels receive addresses. A tensor of another dtype, shape or layout than expected would give wrong
numbers or a crash, so each operator checks all its tensors here before it calls a backend.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FORMS = ("apa", "log_apa", "logit_apa", "aglu")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensor(
    operator: str,
    name: str,
    tensor: Tensor,
    *,
    dtypes: Sequence[torch.dtype] = (),
    shapes: Sequence[Sequence[int]] = (),
    device: torch.device | None = None,
    contiguous: bool = False,
) -> None:
    """Raise an error unless a tensor is as an operator expects it.

    Args:
        operator, name: name of the operator and of its argument, for the error.
        tensor: the argument.
        dtypes, shapes: the permitted dtypes and shapes. Empty: any.
        device: the required device. None: any.
        contiguous: the tensor must be contiguous.

    Raises:
        TypeError: if the dtype is not permitted.
        ValueError: if the shape, device or layout is not permitted.
    """
    if dtypes and tensor.dtype not in dtypes:
        raise TypeError(_message(operator, name, dtypes, tensor.dtype))
    if shapes and tuple(tensor.shape) not in [tuple(shape) for shape in shapes]:
        kinds = [f"of shape {tuple(shape)}" for shape in shapes]
        raise ValueError(_message(operator, name, kinds, tuple(tensor.shape)))
    if device is not None and tensor.device != device:
        raise ValueError(_message(operator, name, [f"on {device}"], tensor.device))
    if contiguous and not tensor.is_contiguous():
        raise ValueError(_message(operator, name, ["contiguous"], f"strides {tensor.stride()}"))


def check_activation(
    operator: str,
    form: str,
    x: Tensor,
    alike: dict[str, Tensor | None],
    parameters: dict[str, Tensor],
) -> None:
    """Raise an error unless the arguments of an activation are as the operator expects them.

    Args:
        operator: name of the operator, for the error.
        form: "apa", "log_apa", "logit_apa" or "aglu".
        x: floating-point tensor of any shape.
        alike: tensors with the shape, dtype and device of ``x``, or None.
        parameters: float32 or float64, all of one dtype, on the device of ``x``; broadcastable to
            the shape of ``x``. If ``x`` is float64, they are too.

    Raises:
        TypeError: if a dtype is not permitted.
        ValueError: if ``form``, a shape or a device is not permitted.
    """
    if form not in FORMS:
        raise ValueError(_message(operator, "form", FORMS, repr(form)))
    name = "z" if operator.startswith("activation") else "x"
    check_tensor(operator, name, x, dtypes=FLOATS)
    for name, tensor in alike.items():
        if tensor is not None:
            shapes = [x.shape]
            check_tensor(operator, name, tensor, dtypes=[x.dtype], shapes=shapes, device=x.device)
    kinds = [torch.float64] if x.dtype == torch.float64 else [torch.float32, torch.float64]
    for name, tensor in parameters.items():
        check_tensor(operator, name, tensor, dtypes=kinds, device=x.device)
        kinds = [tensor.dtype]
        if not _broadcasts(tensor, x):
            expected = [f"broadcastable to shape {tuple(x.shape)}"]
            raise ValueError(_message(operator, name, expected, f"shape {tuple(tensor.shape)}"))


def _broadcasts(parameter: Tensor, x: Tensor) -> bool:
    """Return whether a parameter broadcasts to the shape of x."""
    missing = x.dim() - parameter.dim()
    return missing >= 0 and all(
        size in (1, whole) for size, whole in zip(parameter.shape, x.shape[missing:], strict=True)
    )


def _message(operator: str, name: str, expected: Sequence, got: object) -> str:
    choices = " or ".join(str(choice) for choice in expected)
    return f"{name} of apa_det::{operator} must be {choices}, got {got}."
