"""The optimizer: SGD or AdamW, with detectron2's parameter groups."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

__all__ = ["build_optimizer"]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of ``SOLVER.OPTIMIZER``.

    The learning rates and weight decays of norms and biases are detectron2's; λ and κ decay by
    ``MODEL.APA.WEIGHT_DECAY`` if that is given. ``SOLVER.CLIP_GRADIENTS`` works as in detectron2,
    and with ``CLIP_TYPE`` "full_model" clips the norm of all gradients together.

    Raises:
        ValueError: an unknown optimizer.
    """
    solver, overrides = cfg.SOLVER, {}
    if cfg.MODEL.APA.WEIGHT_DECAY is not None:
        decay = {"weight_decay": cfg.MODEL.APA.WEIGHT_DECAY}
        overrides = {"lambda_param": decay, "kappa_param": decay}
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides=overrides,
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
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)

    def clip_full_model(optimizer: torch.optim.Optimizer, *_) -> None:
        gradients = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(gradients, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_full_model)
    return optimizer
