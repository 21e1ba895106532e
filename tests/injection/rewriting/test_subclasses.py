"""Classes with rewritten methods: copies, pickles, compilation, and what is refused."""

import copy
import pickle
import pickletools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apa_det import AGLU, inject, restore
from apa_det.errors import UserError
from apa_det.injection.rewriting import subclasses

from ..conftest import SILU


class Rectified(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.fc = nn.Linear(size, size)

    def forward(self, x):
        return self.finish(F.relu(self.fc(x)))

    def finish(self, x):
        return F.relu(x) - 1


def test_the_class_is_pickled_by_reference():
    model = Rectified()
    inject(model)
    cls = type(model)
    data = pickle.dumps([model, cls, model.forward])
    other, other_cls, forward = pickle.loads(data)
    assert cls is other_cls is type(other) is type(copy.deepcopy(model)) is copy.deepcopy(cls)
    assert forward.__self__ is other and issubclass(cls, Rectified)
    names = {arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)}
    assert "Rectified" in names and not any("F.relu" in name for name in names)  # no source


def test_pickles_of_another_source_are_refused():
    """Such as those of another version of the package that has the class."""
    model = Rectified()
    inject(model)
    digest = subclasses._digest(Rectified).encode()
    for value in (model, type(model)):
        data = pickle.dumps(value)
        assert data.count(digest) == 1
        with pytest.raises(UserError, match="methods of .*Rectified; their source differs"):
            pickle.loads(data.replace(digest, b"0" * len(digest)))


def test_result_names_rewritten_methods(caplog):
    caplog.set_level("INFO")
    replaced = inject(nn.Sequential(Rectified(), Rectified()), ["0.act1", "1.act2"])
    methods = ("Rectified.forward", "Rectified.finish")
    assert replaced.rewritten == {f"{__name__}.Rectified": methods}
    replaced = inject(nn.Sequential(Rectified(), nn.ReLU(), Rectified()), ["0.act2", "1"])
    assert replaced.rewritten == {f"{__name__}.Rectified": ("Rectified.finish",)}
    assert f"Rewrote for instances of {__name__}.Rectified: Rectified.finish" in caplog.text
    assert not inject(nn.Sequential(nn.ReLU())).rewritten


def test_injection_into_a_compiled_model():
    """The graph compiled before is not used again."""
    model, x = Rectified(), torch.randn(2, 3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    before = compiled(x)
    assert [*inject(compiled, **SILU)] == ["_orig_mod.act1", "_orig_mod.act2"]
    expected = F.silu(F.silu(model.fc(x))) - 1
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(copy.deepcopy(compiled)(x), expected)
    compiled(x).sum().backward()
    assert model.act1.lambda_param.grad is not None
    restore(compiled)
    assert torch.equal(compiled(x), before)


class Deep(Rectified):
    def __deepcopy__(self, memo):
        return Deep()


class Reduced(Rectified):
    def __reduce__(self):
        return Reduced, (3,)


class Final(Rectified):
    def __init_subclass__(cls):
        raise TypeError("Final has no subclasses")


@pytest.mark.parametrize(
    "cls, message",
    [
        (Deep, "Cannot replace 1.act1: Deep defines __deepcopy__, so copies would lose"),
        (Reduced, "Cannot replace 1.act1: Reduced defines __reduce__, so copies would lose"),
        (Final, "methods of Final cannot be rewritten.*: Final has no subclasses. Exclude"),
    ],
)
def test_refused_classes(cls, message):
    model = nn.Sequential(nn.ReLU(), cls())
    names = [*model.state_dict()]
    with pytest.raises(UserError, match=message):
        inject(model)
    assert type(model[0]) is nn.ReLU and type(model[1]) is cls
    assert [*model.state_dict()] == names
    assert [*inject(model, "!1.*")] == ["0"] and type(model[0]) is AGLU
