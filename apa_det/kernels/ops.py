"""The kernels as custom operators ``torch.ops.apa_det.*``, with fake kernels and gradients.

torch.compile, torch.export, activation checkpointing and DDP treat each as a single operator. Its
argument ``backend`` selects a module of :data:`BACKENDS`.
"""

from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from . import eager, native, triton_kernels

BACKENDS: dict[str, ModuleType] = {"eager": eager, "native": native, "triton": triton_kernels}

_LIBRARY = torch.library.Library("apa_det", "DEF")


def _define(schema: str, implementation, fake) -> None:
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"apa_det::{name}", fake, lib=_LIBRARY)


def _backend(name: str, z: Tensor) -> ModuleType:
    if name == "eager" and z.device.type == "cpu":
        native.warn_if_missing()
    return BACKENDS[name]


def _activation(z, lambda_, kappa, form, backend):
    return _backend(backend, z).forward(form, z, lambda_, kappa)


def _activation_backward(grad, z, lambda_, kappa, form, backend, needs):
    return _as_tensors(BACKENDS[backend].backward(form, grad, z, lambda_, kappa, needs), z)


def _affine_aglu(*inputs):
    return _backend(inputs[-1], inputs[0]).affine_aglu_forward(*inputs[:-1])


def _affine_aglu_backward(grad, x, *inputs):
    gradients = BACKENDS[inputs[-1]].affine_aglu_backward(grad, x, *inputs[:-1])
    return _as_tensors(gradients, x)


def _class_loss(*inputs):
    return _backend(inputs[-1], inputs[0]).class_loss_forward(*inputs[:-1])


def _class_loss_backward(*inputs):
    return BACKENDS[inputs[-1]].class_loss_backward(*inputs[:-1])


def _as_tensors(gradients, like: Tensor) -> tuple[Tensor, ...]:
    """Replace None by an empty tensor, since operators cannot return None."""
    return tuple(like.new_empty(0) if g is None else g for g in gradients)


_define(
    "activation(Tensor z, Tensor lambda_, Tensor kappa, str form, str backend) -> Tensor",
    _activation,
    lambda z, lambda_, kappa, form, backend: torch.empty_like(z),
)
_define(
    "activation_backward(Tensor grad, Tensor z, Tensor lambda_, Tensor kappa, str form, "
    "str backend, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    _activation_backward,
    lambda grad, z, lambda_, kappa, form, backend, needs: tuple(
        torch.empty_like(t) if need else t.new_empty(0)
        for t, need in zip((z, lambda_, kappa), needs, strict=True)
    ),
)
_define(
    "affine_aglu(Tensor x, Tensor scale, Tensor shift, Tensor? residual, Tensor lambda_, "
    "Tensor kappa, str backend) -> Tensor",
    _affine_aglu,
    lambda x, scale, shift, residual, lambda_, kappa, backend: torch.empty_like(x),
)
_define(
    "affine_aglu_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor? residual, "
    "Tensor lambda_, Tensor kappa, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _affine_aglu_backward,
    lambda grad, x, scale, shift, residual, lambda_, kappa, backend: tuple(
        x.new_empty(0) if t is None else torch.empty_like(t)
        for t in (x, scale, shift, residual, lambda_, kappa)
    ),
)

_CLASS_LOSS_ARGUMENTS = (
    "Tensor logits, Tensor gt_classes, Tensor lambda_, Tensor kappa, Tensor? scarce, "
    "Tensor? share, int seed, float clamp, str backend"
)
_define(
    f"class_loss({_CLASS_LOSS_ARGUMENTS}) -> Tensor",
    _class_loss,
    lambda logits, gt_classes, lambda_, *others: lambda_.new_empty(()),
)
_define(
    f"class_loss_backward(Tensor grad, {_CLASS_LOSS_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _class_loss_backward,
    lambda grad, logits, gt_classes, lambda_, kappa, *others: tuple(
        torch.empty_like(t) for t in (logits, lambda_, kappa)
    ),
)

activation = torch.ops.apa_det.activation.default
affine_aglu = torch.ops.apa_det.affine_aglu.default
class_loss = torch.ops.apa_det.class_loss.default


def _save(ctx, inputs, output):
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor | None)))
    ctx.settings = [x for x in inputs if not isinstance(x, Tensor | None)]


def _activation_gradients(ctx, grad):
    needs = ctx.needs_input_grad[:3]
    gradients = torch.ops.apa_det.activation_backward(
        grad, *ctx.saved_tensors, *ctx.settings, needs
    )
    return *_or_none(gradients, needs), None, None


def _affine_aglu_gradients(ctx, grad):
    gradients = torch.ops.apa_det.affine_aglu_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *_or_none(gradients, ctx.needs_input_grad[:6]), None


def _class_loss_gradients(ctx, grad):
    gradients = torch.ops.apa_det.class_loss_backward(grad, *ctx.saved_tensors, *ctx.settings)
    needs = ctx.needs_input_grad
    by_logits, *by_curve = _or_none(gradients, (True, *needs[2:4]))
    return by_logits, None, *by_curve, None, None, None, None, None


def _or_none(gradients, needs) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(gradients, needs, strict=True)]


def _raise_on_double_backward(ctx, *grads):
    raise RuntimeError(
        "APA does not support second derivatives. Write the activation in plain PyTorch to get "
        "them."
    )


_register = partial(torch.library.register_autograd, lib=_LIBRARY)
_register("apa_det::activation", _activation_gradients, setup_context=_save)
_register("apa_det::affine_aglu", _affine_aglu_gradients, setup_context=_save)
_register("apa_det::class_loss", _class_loss_gradients, setup_context=_save)
for _name in ("activation", "affine_aglu", "class_loss"):
    _register(f"apa_det::{_name}_backward", _raise_on_double_backward)
