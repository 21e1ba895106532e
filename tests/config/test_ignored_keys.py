"""The warning about keys that were set, but do not act."""

import gc
import logging

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.solver import build_optimizer, get_default_optimizer_params
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import apa_det
from apa_det.config.ignored_keys import _pending, ignored_keys, warn_of_ignored_keys
from apa_det.engine import LambdaKappaWriter, train_only
from apa_det.engine import build_optimizer as our_build_optimizer
from apa_det.modeling import make_apa_resnet


@pytest.fixture(autouse=True)
def no_other_trainings():
    gc.collect()  # the trainers of other tests
    for handle in _pending:  # of models that were never trained
        handle.remove()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = apa_det.AGLU()
        self.head = nn.Linear(4, 4)
        self.gate = apa_det.APA()


def make_cfg(*options):
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


def faults(cfg, optimizer):
    """The keys that do not act."""
    return {fault.split()[0].partition(".")[2]: fault for fault in ignored_keys(cfg, optimizer)}


DECAY = ("MODEL.APA.WEIGHT_DECAY", 0.0)
RATE = ("MODEL.APA.LR_FACTOR", 0.1)


@pytest.mark.parametrize("options", [DECAY, RATE, (*DECAY, *RATE)])
def test_parameter_groups(options):
    cfg, model = make_cfg(*options), Model()
    keys = {name.partition(".")[2] for name in options[::2]}
    assert faults(cfg, our_build_optimizer(cfg, model)) == {}
    assert faults(cfg, torch.optim.RMSprop(apa_det.param_groups(cfg, model))) == {}
    found = faults(cfg, build_optimizer(cfg, model))
    assert found.keys() == keys
    assert all("act.lambda_param has the" in fault for fault in found.values())
    without = torch.optim.SGD(model.conv.parameters(), lr=0.1)
    assert all("the optimizer has no λ and κ" in f for f in faults(cfg, without).values())


def test_learning_rates_are_compared_before_the_schedule_and_within_a_layer():
    """As in projects with a smaller rate for the backbone: here for conv and act."""
    model = Model()
    backbone = [*model.conv.parameters(), *model.act.parameters()]
    heads = [*model.head.parameters(), *model.gate.parameters()]
    groups = [{"params": backbone, "lr": 0.01}, {"params": heads, "lr": 0.1}]
    assert "APA.LR_FACTOR" in faults(make_cfg(*RATE), torch.optim.SGD(groups, lr=0.1))
    cfg = make_cfg(*RATE)
    optimizer = our_build_optimizer(cfg, model)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001)
    assert optimizer.param_groups[0]["lr"] < cfg.SOLVER.BASE_LR and faults(cfg, optimizer) == {}


def test_optimizer_and_trained():
    cfg = make_cfg("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.TRAINED", ["head.*"])
    model = Model()
    found = faults(cfg, build_optimizer(cfg, model))
    assert "the optimizer is SGD" in found["OPTIMIZER"] and "conv.weight" in found["TRAINED"]
    train_only(model, cfg.SOLVER.TRAINED)
    assert faults(cfg, our_build_optimizer(cfg, model)) == {}


def test_keys_of_trainer_and_hooks():
    cfg = make_cfg(
        *("SOLVER.EMA.ENABLED", True, "TEST.BEST_METRIC", "bbox/AP", "SOLVER.ACCUMULATE", 2),
        *("MODEL.APA.LOG_PERIOD", 5, "INPUT.MAX_BAD_IMAGES", 3, "TEST.EXTRA_METRICS", ["AR"]),
    )
    model = Model()
    optimizer = build_optimizer(cfg, model)
    found = faults(cfg, optimizer)
    expected = {"EMA.ENABLED", "BEST_METRIC", "ACCUMULATE", "APA.LOG_PERIOD", "MAX_BAD_IMAGES"}
    assert found.keys() == expected
    assert "it acts in apa_det.engine.Trainer, which" in found["EMA.ENABLED"]
    writer = LambdaKappaWriter(model, period=5)
    assert faults(cfg, optimizer).keys() == expected - {"APA.LOG_PERIOD"}
    del writer


def test_keys_of_the_model():
    """They do not act in detectron2's modules; those of other projects may read them."""
    cfg = make_cfg("MODEL.APA.ACTIVATION", "aglu", "MODEL.APA.INJECT.ENABLED", True)
    resnet = torch.nn.Sequential(make_apa_resnet(18, norm="BN"))
    assert faults(cfg, build_optimizer(cfg, resnet)).keys() == {"APA.INJECT.ENABLED"}
    blocks = ResNet.make_stage(BasicBlock, 1, in_channels=4, out_channels=4, stride_per_block=[1])
    detectron2s = ResNet(BasicStem(3, 4), [blocks])
    found = faults(cfg, build_optimizer(cfg, detectron2s))
    assert found.keys() == {"APA.INJECT.ENABLED", "APA.ACTIVATION"}
    assert faults(cfg, build_optimizer(cfg, Model())).keys() == {"APA.INJECT.ENABLED"}
    apa_det.inject(detectron2s)
    assert faults(cfg, build_optimizer(cfg, detectron2s)).keys() == {"APA.ACTIVATION"}


def test_lazy_config(tmp_path):
    (tmp_path / "config.py").write_text(
        "train = dict(accumulate=2, ema=dict(enabled=False, decay=0.999), trained=['*'],\n"
        "             test_augmentation=dict(enabled=True), apa_log_period=100, seed=3,\n"
        "             ddp=dict(find_unused_parameters=True))"
    )
    cfg = LazyConfig.load(str(tmp_path / "config.py"))
    model = Model()
    optimizer = torch.optim.SGD(get_default_optimizer_params(model), lr=0.1)
    assert faults(cfg, optimizer).keys() == {"accumulate", "test_augmentation.enabled"}


@pytest.fixture
def warnings(caplog):
    """The warnings of :func:`warn_of_ignored_keys` so far."""
    return lambda: [r for r in caplog.records if r.name == "apa_det.config.ignored_keys"]


def step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_one_warning_at_the_first_step(warnings):
    before = len(_global_optimizer_pre_hooks)
    cfg, model = make_cfg(*DECAY), Model()
    warn_of_ignored_keys(make_cfg(*RATE))
    warn_of_ignored_keys(cfg, model)  # replaces the first one
    other = Model()
    step(other, build_optimizer(cfg, other))
    assert warnings() == []
    optimizer = build_optimizer(cfg, model)
    step(model, optimizer)
    step(model, optimizer)
    (record,) = warnings()
    assert record.levelno == logging.WARNING
    assert "MODEL.APA.WEIGHT_DECAY 0.0: act.lambda_param has the weight decay" in record.message
    assert len(_global_optimizer_pre_hooks) == before


def test_one_warning_if_the_step_calls_that_of_the_base_class(warnings):
    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = Model()
    torch.optim.SGD(model.parameters(), lr=0.1)  # from here on, SGD.step calls the hooks too
    warn_of_ignored_keys(make_cfg(*DECAY))
    step(model, Clipped(model.parameters(), lr=0.1, weight_decay=0.1))
    assert len(warnings()) == 1


def test_a_model_that_is_gone(warnings):
    before, model = len(_global_optimizer_pre_hooks), Model()
    warn_of_ignored_keys(make_cfg(*DECAY), model)
    del model
    other = Model()
    step(other, build_optimizer(make_cfg(*DECAY), other))
    assert warnings() == [] and len(_global_optimizer_pre_hooks) == before
