"""The activations as custom operators ``torch.ops.apa_det.*``, with fake kernels and gradients.

torch.compile, torch.export, activation checkpointing and DDP treat each as a single operator. Its
argument ``backend`` names a module of :data:`BACKENDS`, or is "auto". Tensors are checked, and the
backend is chosen, once per combination of dtypes, devices, shapes and strides.

The dispatcher, and gradients registered with it, take several times as long as a small tensor. So
tensors of a known layout go directly to the backend, by an autograd.Function, unless something has
to see the operator: torch.compile, a transform of torch.func, a dispatch mode or a tensor subclass.
"""

import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from . import eager, native_library
from .backends import BACKENDS, select_backend
from .checks import check_activation

Plan = tuple[ModuleType, object]
_MAX_PLANS = 4096
_PLAIN = Tensor, torch.nn.Parameter

_LIBRARY = torch.library.Library("apa_det", "DEF")
_plans: dict[tuple, Plan] = {}


def _prepare(
    operator: str, form: str, backend: str, x: Tensor, alike: dict, parameters: dict
) -> Plan:
    """Return the backend, and its layout of these tensors.

    Args:
        operator: name of the operator, for errors.
        form, backend, x: arguments of the operator.
        alike: arguments with the shape and dtype of ``x``, or None.
        parameters: arguments that broadcast to the shape of ``x``.
    """
    key = [form, backend]
    for t in (x, *alike.values(), *parameters.values()):
        key += (None,) if t is None else (t.dtype, t.device, t.shape, t.stride())
    key = tuple(key)
    plan = _plans.get(key)
    if plan is None:
        check_activation(operator, form, x, alike, parameters)
        module = BACKENDS[select_backend(backend, x, *parameters.values())]
        if module is eager and x.device.type == "cpu":
            native_library.warn_if_missing()
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        plan = _plans[key] = module, module.plan(form, x, parameters)
    return plan


def _activation(z, lambda_, kappa, form, backend, lambda_min=None):
    parameters = {"lambda_": lambda_, "kappa": kappa}
    module, layout = _prepare("activation", form, backend, z, {}, parameters)
    return module.forward(form, z, lambda_, kappa, _minimum(lambda_min), layout)


def _activation_backward(grad, z, lambda_, kappa, form, backend, needs, lambda_min=None):
    parameters = {"lambda_": lambda_, "kappa": kappa}
    module, layout = _prepare("activation_backward", form, backend, z, {"grad": grad}, parameters)
    lambda_min = _minimum(lambda_min)
    gradients = module.backward(form, grad, z, lambda_, kappa, needs, lambda_min, layout)
    return _as_tensors(gradients, (z, lambda_, kappa))


def _affine_aglu(x, scale, shift, residual, lambda_, kappa, backend, lambda_min=None):
    parameters = {"scale": scale, "shift": shift, "lambda_": lambda_, "kappa": kappa}
    alike = {"residual": residual}
    module, layout = _prepare("affine_aglu", "aglu", backend, x, alike, parameters)
    inputs = x, scale, shift, residual, lambda_, kappa
    return module.affine_aglu_forward(*inputs, _minimum(lambda_min), layout)


def _affine_aglu_backward(
    grad, x, scale, shift, residual, lambda_, kappa, backend, lambda_min=None
):
    parameters = {"scale": scale, "shift": shift, "lambda_": lambda_, "kappa": kappa}
    alike = {"residual": residual, "grad": grad}
    module, layout = _prepare("affine_aglu_backward", "aglu", backend, x, alike, parameters)
    inputs = x, scale, shift, residual, lambda_, kappa
    gradients = module.affine_aglu_backward(grad, *inputs, _minimum(lambda_min), layout)
    return _as_tensors(gradients, (x, scale, shift, x, lambda_, kappa))


def _minimum(lambda_min: float | None) -> float:
    return -math.inf if lambda_min is None else lambda_min


def _as_tensors(gradients, inputs) -> tuple[Tensor, ...]:
    """Replace None by an empty tensor, since operators cannot return None."""
    pairs = zip(gradients, inputs, strict=True)
    return tuple(t.new_empty(0) if g is None else g for g, t in pairs)


def _fake_activation_backward(grad, z, lambda_, kappa, form, backend, needs, lambda_min=None):
    gradients = torch.empty_like(z), lambda_.new_empty(lambda_.shape), kappa.new_empty(kappa.shape)
    needed = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return _as_tensors(needed, (z, lambda_, kappa))


def _fake_affine_aglu_backward(
    grad, x, scale, shift, residual, lambda_, kappa, backend, lambda_min=None
):
    by_scale, by_shift, by_lambda, by_kappa = (
        p.new_empty(p.shape) for p in (scale, shift, lambda_, kappa)
    )
    by_residual = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), by_scale, by_shift, by_residual, by_lambda, by_kappa


def _define(schema: str, implementation: Callable, fake: Callable) -> Callable:
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"apa_det::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.apa_det, name).default


_ACTIVATION = "Tensor z, Tensor lambda_, Tensor kappa, str form, str backend"
_AFFINE = (
    "Tensor x, Tensor scale, Tensor shift, Tensor? residual, Tensor lambda_, Tensor kappa, "
    "str backend"
)
_MINIMUM = "float? lambda_min=None"  # lower clamp of λ
activation = _define(
    f"activation({_ACTIVATION}, {_MINIMUM}) -> Tensor",
    _activation,
    lambda z, *others: torch.empty_like(z),
)
activation_backward = _define(
    f"activation_backward(Tensor grad, {_ACTIVATION}, bool[3] needs, {_MINIMUM}) "
    "-> (Tensor, Tensor, Tensor)",
    _activation_backward,
    _fake_activation_backward,
)
affine_aglu = _define(
    f"affine_aglu({_AFFINE}, {_MINIMUM}) -> Tensor",
    _affine_aglu,
    lambda x, *others: torch.empty_like(x),
)
affine_aglu_backward = _define(
    f"affine_aglu_backward(Tensor grad, {_AFFINE}, {_MINIMUM}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _affine_aglu_backward,
    _fake_affine_aglu_backward,
)


# -------------------------------------------------------------------- gradients


def _save_activation(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _save_affine_aglu(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]


def _activation_gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs, (form, backend, lambda_min) = ctx.needs_input_grad[:3], ctx.settings
    by_z, by_lambda, by_kappa = activation_backward(
        grad, *ctx.saved_tensors, form, backend, needs, lambda_min
    )
    return (
        by_z if needs[0] else None,
        by_lambda if needs[1] else None,
        by_kappa if needs[2] else None,
        *(None, None, None),
    )


def _affine_aglu_gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = affine_aglu_backward(grad, *ctx.saved_tensors, *ctx.settings)
    needed = zip(gradients, ctx.needs_input_grad[:6], strict=True)
    return *(g if need else None for g, need in needed), None, None


def _raise_on_double_backward(ctx, *grads) -> None:
    raise RuntimeError(
        "APA does not support second derivatives. Write the activation in plain PyTorch to get "
        "them."
    )


for _name, _gradients, _save in (
    ("activation", _activation_gradients, _save_activation),
    ("affine_aglu", _affine_aglu_gradients, _save_affine_aglu),
):
    torch.library.register_autograd(
        f"apa_det::{_name}", _gradients, setup_context=_save, lib=_LIBRARY
    )
    torch.library.register_autograd(
        f"apa_det::{_name}_backward", _raise_on_double_backward, lib=_LIBRARY
    )


# -------------------------------------------------------------------- calls without dispatcher


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, lambda_, kappa, form, backend, lambda_min, plan):
        ctx.save_for_backward(z, lambda_, kappa)
        ctx.settings = form, backend, lambda_min
        ctx.plan = module, layout = plan
        return module.forward(form, z, lambda_, kappa, lambda_min, layout)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled() or type(grad) is not Tensor:
            return *_activation_gradients(ctx, grad), None
        (form, _, lambda_min), (module, layout) = ctx.settings, ctx.plan
        inputs = ctx.saved_tensors
        gradients = module.backward(form, grad, *inputs, ctx.needs_input_grad, lambda_min, layout)
        return *gradients, None, None, None, None


class _AffineAGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, residual, lambda_, kappa, backend, lambda_min, plan):
        inputs = x, scale, shift, residual, lambda_, kappa
        ctx.save_for_backward(*inputs)
        ctx.settings = backend, lambda_min
        ctx.plan = module, layout = plan
        return module.affine_aglu_forward(*inputs, lambda_min, layout)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled() or type(grad) is not Tensor:
            return *_affine_aglu_gradients(ctx, grad), None
        (_, lambda_min), (module, layout) = ctx.settings, ctx.plan
        gradients = module.affine_aglu_backward(grad, *ctx.saved_tensors, lambda_min, layout)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(g if need else None for g, need in needed), None, None, None


def find_plan(form: str, backend: str, *tensors: Tensor | None) -> Plan | None:
    """Return how to call a backend without the dispatcher, if these tensors were checked before.

    Args:
        form, backend: arguments of the operator.
        tensors: its other arguments, in their order in the arguments of ``_prepare``.

    Returns:
        The plan for :func:`evaluate` or :func:`evaluate_affine`. None: call the operator, because
        it has not seen tensors of this layout, or because something else needs to see it: a
        subclass, a dispatch mode, a trace or a transform.
    """
    if (
        torch.compiler.is_dynamo_compiling()
        or torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    key = [form, backend]
    for t in tensors:
        if t is None:
            key.append(None)
        elif type(t) in _PLAIN:
            key += t.dtype, t.device, t.shape, t.stride()
        else:
            return None
    return _plans.get(tuple(key))


def evaluate(
    plan: Plan,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    form: str,
    backend: str,
    lambda_min: float,
) -> Tensor:
    """Evaluate ``torch.ops.apa_det.activation`` without the dispatcher."""
    if torch.is_grad_enabled() and (
        z.requires_grad or lambda_.requires_grad or kappa.requires_grad
    ):
        return _Activation.apply(z, lambda_, kappa, form, backend, lambda_min, plan)
    module, layout = plan
    return module.forward(form, z, lambda_, kappa, lambda_min, layout)


def evaluate_affine(
    plan: Plan,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    backend: str,
    lambda_min: float,
) -> Tensor:
    """Evaluate ``torch.ops.apa_det.affine_aglu`` without the dispatcher."""
    inputs = x, scale, shift, residual, lambda_, kappa
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _AffineAGLU.apply(*inputs, backend, lambda_min, plan)
    module, layout = plan
    return module.affine_aglu_forward(*inputs, lambda_min, layout)
