"""Only what a forward pass uses is replaced, and a shared module stays one module."""

import logging
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apa_det import AGLU, inject, restore

from .conftest import injected_names


class Attention(nn.Module):
    """The activation is an argument of the constructor only."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.activation = activation

    def forward(self, x):
        return self.fc(x) + x

    def extra_repr(self):
        return f"activation={self.activation}"


class FeedForward(nn.Module):
    """The forward pass calls the activation as a part of ``layers``."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.layers = nn.Sequential(nn.Linear(4, 4), self.activation, nn.Linear(4, 4))

    def forward(self, x):
        return x + self.layers(x)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        activation = nn.ReLU(inplace=True)
        self.attention, self.first = Attention(), FeedForward(activation)
        self.other, self.second = Attention(nn.GELU()), FeedForward(activation)
        self.unused = nn.ModuleList([nn.ReLU(), nn.Sequential(nn.ReLU())])

    def forward(self, x):
        return self.second(self.other(self.first(self.attention(x))))


def test_unused_attributes_are_passed_over(caplog):
    model, x = Transformer(), torch.randn(3, 4)
    with caplog.at_level(logging.INFO):
        replaced = inject(model)
    shared = ["first.activation", "first.layers.1", "second.activation", "second.layers.1"]
    assert [*replaced] == shared == injected_names(model)
    assert len({id(model.get_submodule(name)) for name in shared}) == 1
    assert len({n for n, _ in model.named_parameters() if "lambda" in n or "kappa" in n}) == 2
    not_used = {name: "no method of Attention uses it" for name in ("attention.activation",)}
    not_used["other.activation"] = "no method of Attention uses it"
    not_used["unused.0"] = "the ModuleList that holds it is never used"
    not_used["unused.1.0"] = "the Sequential that holds it is never used"
    assert replaced.passed_over == not_used and replaced.rewritten == {}
    message = "Passed over attention.activation, other.activation: no method of Attention uses it"
    assert message in caplog.text
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    restore(model)
    assert len({id(model.get_submodule(name)) for name in shared}) == 1
    assert type(model.first.activation) is nn.ReLU
    with pytest.raises(ValueError, match="No forward pass of Transformer uses a selected .*unused"):
        inject(model, "unused.*")
    assert [*inject(model, "*.layers.*")] == shared[1::2]
    assert type(model.first.activation) is nn.ReLU


def test_distributed_training(tmp_path):
    """DistributedDataParallel fails in the second step if a parameter has no gradient."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        for unused in (False, True):
            model = Transformer()
            inject(model)
            if unused:  # as if it were replaced
                model.attention.activation = AGLU()
            wrapped = DistributedDataParallel(model)
            wrapped(torch.randn(2, 4)).sum().backward()
            assert unused == any(p.grad is None for p in model.parameters())
            with pytest.raises(RuntimeError, match="prior iteration") if unused else nullcontext():
                wrapped(torch.randn(2, 4)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


class ByGetattr(nn.Module):
    def __init__(self):
        super().__init__()
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        for i in (1, 2):
            x = getattr(self, f"act{i}")(x)
        return x


class Registered(nn.Module):
    """Children are registered by name and called from a list."""

    def __init__(self):
        super().__init__()
        self.steps = []
        for i in range(2):
            self.add_module(f"step{i}", nn.Sequential(nn.ReLU()))
            self.steps.append(getattr(self, f"step{i}"))

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class ByLambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.compute = lambda x: self.act(x)

    def forward(self, x):
        return self.compute(x)


class ByProperty(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    @property
    def function(self):
        return self.act

    def forward(self, x):
        return self.function(x)


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.own = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.act(x)


class BySuper(Parent):
    def forward(self, x):
        return self.own(super().forward(x))


class Overridden(Parent):
    def forward(self, x):
        return self.own(x)


class ByOther(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.helped = Attention(), Parent()

    def forward(self, x):
        return apply_own(self.helped, self.inner.activation(x))


def apply_own(block, x):
    return block.own(block.act(x))


class ByOtherMethod(nn.Module):
    """Without a forward pass: called by other methods, from outside."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward_features(self, x):
        return self.act(x)


class ForConstruction(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = F.relu
        self.conv = self._build()

    def _build(self):
        return Conv2d(3, 3, 1, activation=self.act)

    def forward(self, x):
        return self.conv(x)


class OfTorch(nn.TransformerEncoderLayer):
    def forward(self, x):
        return super().forward(x)


class InTwo(nn.Module):
    """Two blocks share a module that each of them calls twice."""

    def __init__(self):
        super().__init__()
        act = nn.ReLU()
        self.first, self.second = Twice(act), Twice(act)

    def forward(self, x):
        return self.second(self.first(x))


class Twice(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(self.act(x) + 1)


@pytest.mark.parametrize(
    "build, expected",
    [
        (ByGetattr, ["act1", "act2"]),
        (Registered, ["step0.0", "step1.0"]),
        (ByLambda, ["act"]),
        (ByProperty, ["act"]),
        (BySuper, ["act", "own"]),
        (Overridden, ["own"]),
        (ByOther, ["helped.act", "helped.own", "inner.activation"]),
        (ByOtherMethod, ["act"]),
        (ForConstruction, ["conv.activation"]),
        (lambda: OfTorch(4, 2, 8), ["activation"]),
        (InTwo, ["first.act", "second.act"]),
    ],
)
def test_uses(build, expected):
    model = build()
    assert sorted(inject(model)) == expected == sorted(injected_names(model))


def test_shared_module_per_channel():
    model, x = InTwo(), torch.randn(2, 3, 4, 4)
    inject(model, parameters="per_channel", example=x)
    assert model.first.act is model.second.act and type(model.first.act) is AGLU
    assert model.first.act.num_channels == 3


def rectify(x):
    return F.relu(x)


class CallsFunction(nn.Module):
    def forward(self, x):
        return F.gelu(rectify(x))


def test_calls_outside_of_methods_are_reported():
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU())))
    model = nn.Sequential(CallsFunction(), CallsFunction(), scripted)
    model[1].forward = lambda x: F.gelu(x)
    replaced = inject(model)
    assert [*replaced] == ["0.act"]
    assert [*replaced.rewritten.values()] == [("CallsFunction.forward",)]
    rectifies = "rectify calls relu, but it is not a method of the module"
    assert replaced.passed_over == {
        "0.rectify": rectifies,
        "1.rectify": rectifies,
        "1.forward": "CallsFunction.forward calls gelu, but forward is set on the instance, not by "
        "its class",
        "2": "it is a ScriptModule; inject before scripting or tracing",
    }
