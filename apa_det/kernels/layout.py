"""How tensors lie in memory, and along what their parameters differ: for the compiled kernels."""

import torch
from torch import Tensor

__all__ = ["fits", "is_dense", "like", "sizes_along"]


def is_dense(x: Tensor) -> bool:
    """Whether x lies in memory without gaps, as (N, C, ...) or channels-last."""
    return x.is_contiguous() or (x.dim() > 2 and x.movedim(1, -1).is_contiguous())


def like(tensor: Tensor, x: Tensor) -> Tensor:
    """A tensor of the shape of x, in its dtype and layout."""
    is_alike = tensor.stride() == x.stride() or (tensor.is_contiguous() and x.is_contiguous())
    if is_alike and tensor.dtype == x.dtype:
        return tensor
    return torch.empty_like(x).copy_(tensor)


def fits(parameter: Tensor, x: Tensor) -> bool:
    """Whether it is one number, or differs along the first two dimensions of x alone."""
    if parameter.numel() == 1:
        return True
    shape = (1,) * (x.dim() - parameter.dim()) + tuple(parameter.shape)
    sizes = (*x.shape[:2], *(1 for _ in shape[2:]))
    return len(shape) == x.dim() >= 2 and all(
        size in (1, whole) for size, whole in zip(shape, sizes, strict=True)
    )


def sizes_along(parameter: Tensor, x: Tensor) -> tuple[int, int]:
    """The sizes of a parameter that :func:`fits` along the first two dimensions of x."""
    if parameter.numel() == 1:
        return 1, 1
    shape = (1,) * (x.dim() - parameter.dim()) + tuple(parameter.shape)
    return shape[0], shape[1]
