"""The optimizer against detectron2's, and against updates by hand."""

import math

import pytest
import torch
from detectron2 import solver
from detectron2.config import get_cfg
from torch import nn

from apa_det import AGLU, add_apa_config, param_groups
from apa_det.engine import build_optimizer
from apa_det.errors import UserError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = AGLU()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def make_cfg(*options):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


def groups(model, optimizer):
    """Return learning rate and weight decay by parameter name."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def step(model, optimizer, gradients):
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].clone()
    optimizer.step()


def random_gradients(model, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(p.shape, generator=generator) * scale
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("SOLVER.WEIGHT_DECAY_NORM", 0.5, "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.NESTEROV", True),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    ],
)
def test_sgd_equals_detectron2(options):
    cfg, results = make_cfg("SOLVER.BASE_LR", 0.1, *options), []
    for build in (build_optimizer, solver.build_optimizer):
        torch.manual_seed(0)
        model = Model()
        optimizer = build(cfg, model)
        for _ in range(3):
            step(model, optimizer, random_gradients(model, 10))
        results.append((groups(model, optimizer), model.state_dict()))
    assert results[0][0] == results[1][0]
    for name, value in results[1][1].items():
        assert torch.equal(results[0][1][name], value), name


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_groups(name):
    cfg = make_cfg(
        *("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", 1e-4, "SOLVER.WEIGHT_DECAY", 0.1),
        *("SOLVER.WEIGHT_DECAY_NORM", 0.2, "SOLVER.WEIGHT_DECAY_BIAS", 0.3),
        *("SOLVER.BIAS_LR_FACTOR", 2.0, "MODEL.APA.WEIGHT_DECAY", 0.0, "MODEL.APA.LR_FACTOR", 0.5),
    )
    model = Model()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD if name == "SGD" else torch.optim.AdamW)
    assert groups(model, optimizer) == {
        "conv.weight": (1e-4, 0.1),
        "conv.bias": (2e-4, 0.3),
        "norm.weight": (1e-4, 0.2),
        "norm.bias": (2e-4, 0.3),
        "act.lambda_param": (5e-5, 0.0),
        "act.kappa_param": (5e-5, 0.0),
    }


def test_param_groups_for_any_optimizer():
    """The groups hold all values, so that the defaults of the optimizer do not act."""
    cfg = make_cfg(
        *("SOLVER.BASE_LR", 1e-4, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.2),
        *("MODEL.APA.WEIGHT_DECAY", 0.0, "MODEL.APA.LR_FACTOR", 0.5),
    )
    model = Model()
    expected = groups(model, build_optimizer(cfg, model))
    for optimizer in (torch.optim.RMSprop, torch.optim.NAdam, torch.optim.AdamW):
        assert groups(model, optimizer(param_groups(cfg, model))) == expected


def test_adamw_step():
    """The first step is lr · sign(gradient), after a decay of lr · weight decay."""
    cfg = make_cfg("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", 1e-2, "SOLVER.WEIGHT_DECAY", 0.1)
    model = Model()
    before = model.conv.weight.detach().clone()
    gradients = random_gradients(model)
    step(model, build_optimizer(cfg, model), gradients)
    expected = before * (1 - 1e-3) - 1e-2 * gradients["conv.weight"].sign()
    torch.testing.assert_close(model.conv.weight, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_full_model_clip(name, norm_type, scale):
    clip = "SOLVER.CLIP_GRADIENTS"
    cfg = make_cfg(
        *("SOLVER.OPTIMIZER", name, f"{clip}.ENABLED", True, f"{clip}.CLIP_TYPE", "full_model"),
        *(f"{clip}.CLIP_VALUE", 35.0, f"{clip}.NORM_TYPE", norm_type),
    )
    model = Model()
    gradients = random_gradients(model, scale)
    step(model, build_optimizer(cfg, model), gradients)
    every = torch.cat([g.flatten() for g in gradients.values()])
    factor = min(1.0, 35.0 / torch.linalg.vector_norm(every, norm_type).item())
    assert (factor < 1) == (scale == 100)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = gradients[parameter_name] * factor
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_adamw_clips_by_value():
    clip = "SOLVER.CLIP_GRADIENTS"
    cfg = make_cfg(
        *("SOLVER.OPTIMIZER", "ADAMW", f"{clip}.ENABLED", True, f"{clip}.CLIP_VALUE", 0.5)
    )
    model = Model()
    step(model, build_optimizer(cfg, model), random_gradients(model, 10))
    assert all(p.grad.abs().max() <= 0.5 for p in model.parameters() if p.requires_grad)


def test_errors():
    with pytest.raises(UserError, match="one of SGD, ADAMW; got 'ADAM'"):
        build_optimizer(make_cfg("SOLVER.OPTIMIZER", "ADAM"), Model())
