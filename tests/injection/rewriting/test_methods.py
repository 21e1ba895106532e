"""Replacement of activation calls in the source of classes, in every form."""

import copy
import functools
import pickle

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import relu as rectify

from apa_det import APA, inject, restore

from ..conftest import SILU


def scaled(method):
    """A decorator that wraps the method."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        return 2 * method(self, *args, **kwargs)

    return wrapper


class Base(nn.Module):
    def prepare(self, x):
        return x + 1


class EveryForm(Base):
    """Each call is a location; ``expected`` is ``forward`` with another function."""

    SHIFT = 0.5

    def __init__(self):
        super().__init__()
        self.__secret = 3.0
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = [self.fc1, self.fc2]

    def forward(self, x, *, shift=SHIFT):
        x = self.prepare(x)
        x = F.relu(F.relu(x) + shift)
        x = nn.functional.relu(x, inplace=True) * self.__secret
        F.relu_(x)
        x[:, 1:].relu_()
        x = torch.relu(input=x) + rectify(x)
        for layer in self.layers:
            x = layer(x).relu()
        x = sum([F.leaky_relu(y, 0.01) for y in (x, -x)])
        first = (lambda y: F.gelu(y, approximate="tanh"))(x)
        return self.helper(first) + self.static(x) + self.wrapped(x)

    def prepare(self, x):
        return super().prepare(x).relu_()

    def helper(self, x):
        return F.relu(x)

    @staticmethod
    def static(x, factor=2):
        return F.relu(x) * factor

    @scaled
    def wrapped(self, x):
        return F.relu(x)

    def unused(self, x):
        return F.relu(x)

    def expected(self, x):
        f = F.silu
        x = f(x + 1)
        x = f(f(x) + 0.5)
        x = f(x) * 3
        x = f(x)
        x = torch.cat([x[:, :1], f(x[:, 1:])], dim=1)
        x = f(x) + f(x)
        x = f(self.fc2(f(self.fc1(x))))
        x = f(x) + f(-x)
        first = f(x)
        return f(first) + 2 * f(x) + 2 * f(x)


def test_every_form_of_a_call():
    model, x = EveryForm(), torch.randn(3, 4)
    before = model(x.clone())
    replaced = inject(model, **SILU)
    assert [*replaced] == [f"act{i}" for i in range(1, 15)]
    torch.testing.assert_close(model(x.clone()), model.expected(x))
    for name in replaced:  # distinct modules that all affect the output
        other = copy.deepcopy(model)
        nn.init.constant_(getattr(other, name).kappa_param, 3)
        assert not torch.equal(other(x.clone()), model(x.clone())), name
    assert "unused" not in vars(type(model))
    restore(model)
    assert torch.equal(model(x.clone()), before) and type(model) is EveryForm


class Parent(nn.Module):
    def forward(self, x):
        return F.relu(self.inner(x))

    def inner(self, x):
        return F.relu(x - 1)


class Child(Parent):
    def forward(self, x):
        return super().forward(x) + super(Child, self).inner(x)  # noqa: UP008

    def inner(self, x):
        return 2 * super().inner(x)


class Grandchild(Child):
    def forward(self, x):
        return F.relu(super().forward(x))


@pytest.mark.parametrize("cls, count", [(Parent, 2), (Child, 2), (Grandchild, 3)])
def test_calls_in_parents(cls, count):
    model, x = cls(), torch.linspace(-3, 3, 9)
    before = model(x)
    replaced = inject(model, **SILU)
    assert len(replaced) == count
    inner = F.silu(x - 1)
    if cls is Parent:
        expected = F.silu(inner)
    else:
        expected = F.silu(2 * inner) + inner
    if cls is Grandchild:
        expected = F.silu(expected)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    restore(model)
    inject(model, "act1", **SILU)
    assert not torch.equal(model(x), before) and not torch.equal(model(x), expected)
    restore(model)
    assert torch.equal(model(x), before)


class Branches(nn.Module):
    """Only one of the branches runs, so their n-th calls share a module."""

    def __init__(self, single=False):
        super().__init__()
        self.single, self.relu, self.gelu = single, nn.ReLU(), nn.GELU()

    def forward(self, x):
        x = F.relu(x)
        if self.training:
            x = self.twice(x + 1)
        elif x.sum() < 0:
            raise ValueError
        else:
            x = F.relu(x + 2)
        if self.single:
            return self.relu(x)
        x = self.gelu(self.relu(x))
        return F.relu(self.gelu(x)) if self.training else F.relu(x) - 1

    def twice(self, x):
        return F.relu(F.relu(x) - 3)


def test_branches_share_modules():
    model, x = Branches(), torch.linspace(-1, 2, 9)
    replaced = inject(model, **SILU)
    assert {*replaced} == {"relu", "gelu1", "gelu2", "act1", "act2", "act3", "act4"}
    f = F.silu
    start = f(f(f(f(f(x) + 1) - 3)))
    torch.testing.assert_close(model(x), f(f(start)))
    torch.testing.assert_close(model.eval()(x), f(f(f(f(f(x) + 2)))) - 1)
    nn.init.constant_(model.act2.kappa_param, 5)  # the first of both branches
    assert not torch.allclose(model(x), f(f(f(f(f(x) + 2)))) - 1)
    assert not torch.allclose(model.train()(x), f(f(start)))


class Options(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return F.leaky_relu(x, self.slope)


class SteepLeak(nn.Module):
    def forward(self, x):
        return F.leaky_relu(x, negative_slope=0.2)


@pytest.mark.parametrize("model", [Options(0.01), SteepLeak()])
def test_options_of_calls(model):
    with pytest.raises(ValueError, match="approximate leaky_relu at act"):
        inject(model, like="replaced")
    assert inject(model) == {"act": F.leaky_relu}


class Taken(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Identity()

    def forward(self, x):
        return self.act(F.relu(x))


def test_existing_name():
    model = Taken()
    assert [*inject(model, **SILU)] == ["apa_act"]
    assert type(model.act) is nn.Identity
    assert model(torch.ones(1)).item() == pytest.approx(F.silu(torch.ones(1)).item())


class OwnChildren(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = F.relu(layer(x))
        return x


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.steps = [self.relu]

    def forward(self, x):
        return self.steps[0](x)


@pytest.mark.parametrize(
    "model, message",
    [
        (OwnChildren(nn.Linear(2, 2)), "0.act.*: OwnChildren iterates over its children"),
        (Listed(), "0.relu: Listed also has this module in its attribute steps"),
        (torch.fx.symbolic_trace(Parent()), r"0.act1: Parent is a traced graph; inject before"),
    ],
    ids=["children", "list", "graph"],
)
def test_obstacles(model, message):
    whole = nn.Sequential(model, nn.ReLU())
    with pytest.raises(ValueError, match=message):
        inject(whole)
    assert [*inject(whole, "!0.*")] == ["1"]


def hidden():
    scope = {"nn": nn, "F": F}
    exec("class Hidden(nn.Module):\n    def forward(self, x):\n        return F.relu(x)", scope)
    return scope["Hidden"]


def decorated():
    def local(method):
        return functools.wraps(method)(lambda *args: method(*args))

    class Decorated(nn.Module):
        @local
        def forward(self, x):
            return F.relu(x)

    return Decorated


def selfless():
    class Selfless(nn.Module):
        def forward(*args):
            return F.relu(args[1])

    return Selfless


@pytest.mark.parametrize("make", [hidden, decorated, selfless])
def test_source_that_cannot_be_rewritten(make, caplog):
    cls = make()
    model = nn.Sequential(cls(), nn.ReLU())
    for _ in range(2):  # reported each time
        replaced = inject(model)
        assert [*replaced] == ["1"] and type(model[0]) is cls
        reason = replaced.passed_over["0.forward"]
        assert reason.endswith(".forward calls relu, but its source cannot be rewritten")
        assert f"Passed over 0.forward: {reason}" in caplog.text
        caplog.clear()
        restore(model)


def test_local_annotations():
    class Local:
        pass

    class Annotated(nn.Module):
        def forward(self, x: Local, y: int = 1) -> Local:
            return F.relu(x) * y

    model = Annotated()
    inject(model, **SILU)
    assert model(torch.ones(1)).item() == pytest.approx(F.silu(torch.ones(1)).item())
    assert type(model).forward.__annotations__ == {"x": Local, "y": int, "return": Local}


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(4, 4), F.sigmoid

    def forward(self, x):
        x = self.gate(x) * F.relu(x)
        x = x * torch.sigmoid(self.fc(x)) + x * self.fc(x).sigmoid()
        return x * F.hardsigmoid(x)


def test_functional_sigmoids():
    """Replaced only if listed in types, since most are scores."""
    model, x = Gated(), torch.randn(3, 4)
    expected = model(x)
    assert inject(model) == {"act": F.relu, "gate3": F.hardsigmoid}
    restore(model)
    replaced = inject(model, types="functional_sigmoid", like="replaced")
    assert {*replaced} == {"gate", "gate1", "gate2"}
    assert all(type(getattr(model, name)) is APA for name in replaced)
    torch.testing.assert_close(model(x), expected)
    restore(model)
    assert torch.equal(model(x), expected) and model.gate is F.sigmoid
