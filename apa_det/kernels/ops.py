"""The kernels as custom operators ``torch.ops.apa_det.*``, with fake kernels and gradients.

torch.compile, torch.export, activation checkpointing and DDP treat each as a single operator. Its
argument ``backend`` selects a module of :data:`BACKENDS`.
"""

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


def _activation(z, lambda_, kappa, form, backend):
    return BACKENDS[backend].forward(form, z, lambda_, kappa)


def _activation_backward(grad, z, lambda_, kappa, form, backend, needs):
    return _as_tensors(BACKENDS[backend].backward(form, grad, z, lambda_, kappa, needs), z)


def _affine_aglu(x, scale, shift, residual, lambda_, kappa, backend):
    return BACKENDS[backend].affine_aglu_forward(x, scale, shift, residual, lambda_, kappa)


def _affine_aglu_backward(grad, x, scale, shift, residual, lambda_, kappa, backend):
    inputs = x, scale, shift, residual, lambda_, kappa
    return _as_tensors(BACKENDS[backend].affine_aglu_backward(grad, *inputs), x)


def _class_loss(*inputs):
    *inputs, backend = inputs
    return BACKENDS[backend].class_loss_forward(*inputs)


def _class_loss_backward(*inputs):
    *inputs, backend = inputs
    return BACKENDS[backend].class_loss_backward(*inputs)


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


def _save_activation(ctx, inputs, output):
    *tensors, ctx.form, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _activation_gradients(ctx, grad):
    needs = ctx.needs_input_grad[:3]
    gradients = torch.ops.apa_det.activation_backward(
        grad, *ctx.saved_tensors, ctx.form, ctx.backend, needs
    )
    return *_or_none(gradients, needs), None, None


def _save_affine_aglu(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _affine_aglu_gradients(ctx, grad):
    gradients = torch.ops.apa_det.affine_aglu_backward(grad, *ctx.saved_tensors, ctx.backend)
    return *_or_none(gradients, ctx.needs_input_grad[:6]), None


def _save_class_loss(ctx, inputs, output):
    *tensors, ctx.seed, ctx.clamp, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _class_loss_gradients(ctx, grad):
    grad_logits, grad_lambda, grad_kappa = torch.ops.apa_det.class_loss_backward(
        grad, *ctx.saved_tensors, ctx.seed, ctx.clamp, ctx.backend
    )
    needs = ctx.needs_input_grad
    by_parameter = _or_none((grad_lambda, grad_kappa), needs[2:4])
    return grad_logits, None, *by_parameter, None, None, None, None, None


def _or_none(gradients, needs) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(gradients, needs, strict=True)]


def _raise_on_double_backward(ctx, *grads):
    raise RuntimeError(
        "APA does not support second derivatives. Write the activation in plain PyTorch to get "
        "them."
    )


def _register_gradients(name: str, backward, setup_context=None) -> None:
    torch.library.register_autograd(
        f"apa_det::{name}", backward, setup_context=setup_context, lib=_LIBRARY
    )


_register_gradients("activation", _activation_gradients, _save_activation)
_register_gradients("affine_aglu", _affine_aglu_gradients, _save_affine_aglu)
_register_gradients("class_loss", _class_loss_gradients, _save_class_loss)
_register_gradients("activation_backward", _raise_on_double_backward)
_register_gradients("affine_aglu_backward", _raise_on_double_backward)
_register_gradients("class_loss_backward", _raise_on_double_backward)
