"""Optimizers, with detectron2's parameter groups, and gradient clipping."""

import torch
from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError
from ..integration import param_groups


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer ``SOLVER.OPTIMIZER``: SGD or AdamW.

    The parameter groups are those of :func:`apa_det.param_groups`. ``SOLVER.CLIP_GRADIENTS`` is
    that of detectron2, with one more ``CLIP_TYPE``; see :func:`clip_gradients`.

    Raises:
        UserError: an unknown optimizer or type of clipping.
    """
    solver, params = cfg.SOLVER, param_groups(cfg, model)
    args = dict(lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, foreach=True)
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            params, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **args
        )
    elif solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(params, **args)
    else:
        raise UserError(f"SOLVER.OPTIMIZER must be one of SGD, ADAMW; got {solver.OPTIMIZER!r}.")

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        key = "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"
        clip_gradients(optimizer, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE, key=key)
    return optimizer


def clip_gradients(
    optimizer: torch.optim.Optimizer,
    clip_type: str,
    clip_value: float,
    norm_type: float = 2.0,
    *,
    key: str = "clip_type",
) -> None:
    """Make an optimizer clip the gradients before each of its steps.

    Args:
        optimizer: changed in place.
        clip_type: "value" clips each element, "norm" the norm of each parameter's gradient,
            "full_model" the norm of all gradients together.
        clip_value: largest absolute value, or largest norm.
        norm_type: p of the norm.
        key: config key of ``clip_type``, for the error message.

    Raises:
        UserError: an unknown ``clip_type``.
    """
    types = ("value", "norm", "full_model")
    if clip_type not in types:
        raise UserError(f"{key} must be one of {', '.join(types)}; got {clip_type!r}.")

    def clip(optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if clip_type == "full_model":
            nn.utils.clip_grad_norm_(parameters, clip_value, norm_type)
        elif clip_type == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)
        else:
            nn.utils.clip_grad_value_(parameters, clip_value)

    optimizer.register_step_pre_hook(clip)
