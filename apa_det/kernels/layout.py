"""Memory layouts and parameter shapes supported by the compiled backends."""

import torch
from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Return whether x is contiguous or channels-last contiguous."""
    return x.is_contiguous() or (x.dim() > 2 and x.movedim(1, -1).is_contiguous())


def empty_contiguous(like: Tensor) -> Tensor:
    """Return a contiguous tensor of the shape, dtype and device of another one."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def match_layout(tensor: Tensor, x: Tensor) -> Tensor:
    """Return the tensor in the dtype and memory layout of x, which has the same shape."""
    is_alike = tensor.stride() == x.stride() or (tensor.is_contiguous() and x.is_contiguous())
    if is_alike and tensor.dtype == x.dtype:
        return tensor
    return torch.empty_like(x).copy_(tensor)


def is_supported(parameter: Tensor, x: Tensor) -> bool:
    """Return whether a parameter has one element, or varies along dimensions 0 and 1 of x only."""
    if parameter.numel() == 1:
        return True
    shape = (1,) * (x.dim() - parameter.dim()) + tuple(parameter.shape)
    sizes = (*x.shape[:2], *(1 for _ in shape[2:]))
    return len(shape) == x.dim() >= 2 and all(
        size in (1, whole) for size, whole in zip(shape, sizes, strict=True)
    )


def sizes_along(parameter: Tensor, x: Tensor) -> tuple[int, int]:
    """Return the sizes along dimensions 0 and 1 of x of a parameter that :func:`is_supported`."""
    if parameter.numel() == 1:
        return 1, 1
    shape = (1,) * (x.dim() - parameter.dim()) + tuple(parameter.shape)
    return shape[0], shape[1]


def strides_along(parameter: Tensor, x: Tensor) -> tuple[int, int]:
    """Return the strides of a parameter along dimensions 0 and 1 of x, 0 where it does not vary."""
    if parameter.numel() == 1:
        return 0, 0
    missing = x.dim() - parameter.dim()
    sizes = (1,) * missing + tuple(parameter.shape)
    strides = (0,) * missing + parameter.stride()
    return tuple(
        stride if size > 1 else 0 for size, stride in zip(sizes[:2], strides, strict=False)
    )
