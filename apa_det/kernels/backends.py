"""Choice of a backend for given tensors."""

import os
from types import ModuleType

from torch import Tensor

from ..errors import UserError
from . import eager, native, triton_kernels

BACKENDS: dict[str, ModuleType] = {"eager": eager, "native": native, "triton": triton_kernels}

PREFERRED = os.environ.get("APA_DET_BACKEND", "auto")
if PREFERRED not in ("auto", *BACKENDS):
    raise UserError(
        f"The environment variable APA_DET_BACKEND must be one of auto, {', '.join(BACKENDS)}; "
        f"got {PREFERRED!r}."
    )


def select_backend(requested: str | None, z: Tensor, *parameters: Tensor) -> str:
    """Return the requested backend; None or "auto": the fastest that supports these tensors.

    Raises:
        ValueError: if the requested backend does not exist or does not support these tensors.
    """
    if requested not in (None, "auto"):
        if requested not in BACKENDS:
            names = ", ".join(BACKENDS)
            raise ValueError(f"backend must be one of {names}; got {requested!r}.")
        if requested != "eager" and not BACKENDS[requested].supports(z, *parameters):
            raise ValueError(
                f"The {requested} backend is not available, or does not support a {z.dtype} tensor "
                f"of shape {tuple(z.shape)} and strides {z.stride()} on {z.device}. Use "
                "backend=None to select a supported backend."
            )
        return requested
    for name in ("native", "triton") if PREFERRED == "auto" else (PREFERRED,):
        if name != "eager" and BACKENDS[name].supports(z, *parameters):
            return name
    return "eager"
