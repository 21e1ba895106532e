"""Parameter groups with the learning rate and weight decay of λ and κ."""

from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from torch import nn


def param_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Return the parameter groups of a model, for any PyTorch optimizer.

    Norms and biases have the learning rates and weight decays of detectron2's optimizer
    (``SOLVER.WEIGHT_DECAY_NORM``, ``SOLVER.BIAS_LR_FACTOR``, ``SOLVER.WEIGHT_DECAY_BIAS``). λ and κ
    have the learning rate ``MODEL.APA.LR_FACTOR`` times ``SOLVER.BASE_LR``, and the weight decay
    ``MODEL.APA.WEIGHT_DECAY`` unless it is None. In a LazyConfig, the argument ``overrides`` of
    detectron2's ``get_default_optimizer_params`` does the same.

    Args:
        cfg: a config with the keys of detectron2 and apa_det.
        model: the model; its parameters without ``requires_grad`` are left out.

    Returns:
        Dicts with ``params``, ``lr`` and ``weight_decay``.
    """
    solver, apa = cfg.SOLVER, cfg.MODEL.APA
    curve = {"lr": solver.BASE_LR * apa.LR_FACTOR}
    if apa.WEIGHT_DECAY is not None:
        curve["weight_decay"] = apa.WEIGHT_DECAY
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={"lambda_param": curve, "kappa_param": curve},
    )
    # Filled in afterwards: merging groups would change the order of optimizer states
    return [{"weight_decay": solver.WEIGHT_DECAY, **group} for group in groups]
