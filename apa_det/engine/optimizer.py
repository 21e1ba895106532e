"""The optimizer: SGD or AdamW, with detectron2's parameter groups."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from torch import nn

__all__ = ["build_optimizer", "clip_gradients"]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of ``SOLVER.OPTIMIZER``.

    The learning rates and weight decays of norms and biases are detectron2's; λ and κ learn at
    ``MODEL.APA.LR_FACTOR`` times the base rate, and decay by ``MODEL.APA.WEIGHT_DECAY`` if that is
    given. ``SOLVER.CLIP_GRADIENTS`` works as in detectron2, and with ``CLIP_TYPE`` "full_model"
    clips the norm of all gradients together.

    Raises:
        ValueError: an unknown optimizer, or way of clipping.
    """
    solver = cfg.SOLVER
    curve = {"lr": solver.BASE_LR * cfg.MODEL.APA.LR_FACTOR}
    if cfg.MODEL.APA.WEIGHT_DECAY is not None:
        curve["weight_decay"] = cfg.MODEL.APA.WEIGHT_DECAY
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={"lambda_param": curve, "kappa_param": curve},
    )
    args = dict(lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, foreach=True)
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            params, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **args
        )
    elif solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(params, **args)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is SGD or ADAMW, not {solver.OPTIMIZER}.")

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        clip_gradients(optimizer, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE)
    return optimizer


def clip_gradients(
    optimizer: torch.optim.Optimizer, clip_type: str, clip_value: float, norm_type: float = 2.0
) -> None:
    """Let an optimizer clip the gradients before each of its steps.

    Args:
        optimizer: changed in place.
        clip_type: "value" and "norm" clip the gradient of each parameter, "full_model" the norm of
            all together.
        clip_value: the largest absolute value, or norm.
        norm_type: p of the norm.

    Raises:
        ValueError: an unknown ``clip_type``.
    """
    if clip_type not in ("value", "norm", "full_model"):
        raise ValueError(f"Gradients are clipped by value, norm or full_model, not {clip_type}.")

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
