"""APA in models that others wrote: torchvision's, and classes with activations in every form."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
import torchvision
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn
from torch.nn.functional import relu as rectify
from torch.nn.parallel import DistributedDataParallel

from apa_det import AGLU, APA, inject, restore
from apa_det.modeling import injected, make_apa_resnet

SILU = dict(lambda_range=(1.0, 1.0), kappa_range=(1.0, 1.0))  # AGLU is SiLU there
KEPT = "replaced"


def places(model):
    return [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, APA)]


def pictures():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def distance(model, x, expected):
    with torch.no_grad():
        return ((model(x) - expected).norm() / expected.norm()).item()


def small_resnet(block=BottleneckBlock, **kwargs):
    stem = BasicStem(3, 8, "BN")
    args = dict(bottleneck_channels=4) if block is BottleneckBlock else {}
    stage = ResNet.make_stage(
        block, 2, stride_per_block=[2, 1], in_channels=8, out_channels=16, norm="BN", **args
    )
    return ResNet(stem, [stage], out_features=["res2"], **kwargs)


# ------------------------------------------------------------------- detectron2


@pytest.mark.parametrize("depth", [18, 50])
def test_names_of_resnets_are_those_of_our_own(depth):
    """So a checkpoint of either fits the other."""
    ours = make_apa_resnet(depth, activation="aglu")
    theirs = make_apa_resnet(depth, activation="relu")
    block = BasicBlock if depth == 18 else BottleneckBlock
    for module in theirs.modules():  # back to detectron2's own classes
        if hasattr(module, "act"):
            del module.act
            module.__class__ = BasicStem
        elif hasattr(module, "act1"):
            for name in ("act1", "act2", "act3"):
                module._modules.pop(name, None)
            module.__class__ = block
    plain = [*theirs.state_dict()]
    replaced = inject(theirs)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert {*replaced} == {*places(ours)} and {*replaced.values()} == {F.relu_}
    theirs.load_state_dict(ours.state_dict())
    x = pictures()
    for level, feature in ours.eval()(x).items():
        assert torch.equal(theirs.eval()(x)[level], feature)
    restore(theirs)
    assert [*theirs.state_dict()] == plain


def test_activation_of_a_convolution():
    """An attribute that is a function becomes a module of that name, and a function again."""
    conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4), activation=F.relu).eval()
    x = pictures()
    expected = conv(x)
    assert inject(conv, **SILU) == {"activation": F.relu}
    torch.testing.assert_close(conv(x), F.silu(conv.norm(F.conv2d(x, conv.weight, conv.bias))))
    restore(conv)
    assert conv.activation is F.relu and torch.equal(conv(x), expected)


def test_one_place_for_all_levels():
    """A head that runs on several levels has one module at each place of its source."""
    block = LastLevelP6P7(4, 4)
    inject(block)
    block(torch.randn(1, 4, 16, 16))
    block(torch.randn(1, 4, 8, 8))
    assert places(block) == ["act"] and len([*block.act.parameters()]) == 2


def test_frozen_layers():
    model = small_resnet(freeze_at=2)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    inject(model)
    assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}
    assert model.stem.act.kappa_param.requires_grad


# ------------------------------------------------------------------- torchvision


def resnet(block=torchvision.models.resnet.Bottleneck):
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5, width_per_group=16)


def vision_transformer():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    nn.init.normal_(model.heads.head.weight)  # it starts as zeros
    return model


def mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=5)


def efficientnet():
    block = torchvision.models.efficientnet.MBConvConfig
    return torchvision.models.EfficientNet(
        [block(4, 3, 2, 16, 16, 1), block(4, 3, 2, 16, 24, 1)], dropout=0.0, num_classes=5
    )


def regnet():
    parameters = torchvision.models.regnet.BlockParams.from_init_params(
        depth=5, w_0=8, w_a=14.0, w_m=2.0, group_width=4, se_ratio=0.25
    )
    return torchvision.models.RegNet(parameters, num_classes=5)


MODELS = {  # with a sample of their places, and how far like="replaced" may move outputs
    "resnet": (resnet, ["relu", "layer2.0.relu1", "layer2.0.relu3"], 0.01),
    "vision_transformer": (vision_transformer, ["encoder.layers.encoder_layer_1.mlp.1"], 0.03),
    "efficientnet": (
        efficientnet,
        [
            "features.0.2",
            "features.1.0.block.2.activation",
            "features.1.0.block.2.scale_activation",
        ],
        1e-4,
    ),
    "regnet": (
        regnet,
        ["stem.2", "trunk_output.block1.block1-0.f.se.scale_activation"],
        0.01,
    ),
    "mobilenet": (mobilenet, ["features.1.block.1.scale_activation"], None),
}


def calibrated(model):
    """In evaluation mode, with what its batch norms would have learned."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(pictures())
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_torchvision(name):
    """Keeps working when APA is put in, trains, and comes back bit by bit."""
    build, some, tolerance = MODELS[name]
    torch.manual_seed(0)
    model = calibrated(build())
    names, expected = [*model.state_dict()], model(pictures())
    replaced = inject(model, like=KEPT if tolerance else None)
    assert {*some} <= {*replaced} == {*places(model)}
    assert {*names} <= {*model.state_dict()}
    assert tolerance is None or distance(model, pictures(), expected) < tolerance
    for name, old in replaced.items():
        gate = isinstance(old, nn.Sigmoid | nn.Hardsigmoid)
        assert type(model.get_submodule(name)) is (APA if gate else AGLU)
        assert not model.get_submodule(name).training
    model.train()(pictures()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    restored = copy.deepcopy(model)
    restore(restored)
    assert [*restored.state_dict()] == names

    model = calibrated(build())
    expected = model(pictures())
    inject(model, parameters="per_channel", example=pictures())
    assert not torch.equal(model(pictures()), expected)
    restore(model)
    assert torch.equal(model(pictures()), expected) and [*model.state_dict()] == names


def test_blocks_that_call_one_module_have_one_each():
    block = resnet().layer2[0]
    example = torch.randn(1, block.conv1.in_channels, 8, 8)
    replaced = inject(block, parameters="per_channel", example=example)
    assert set(map(id, replaced.values())) == {id(block.relu)}
    widths = [module.num_channels for module in (block.relu1, block.relu2, block.relu3)]
    assert widths == [block.conv1.out_channels, block.conv2.out_channels, block.conv3.out_channels]


# ------------------------------------------------------------------- activations

STARTS = {  # λ and κ, and how far AGLU may be from it for |z| <= 10
    "ReLU": ((1, 300), 0.001),
    "SiLU": ((1, 1), 1e-6),
    "GELU": ((1, 1.702), 0.021),
    "Mish": ((2.2025, 1.8958), 0.017),
    "Sigmoid": ((1, 1), 1e-6),
    "Hardsigmoid": ((1, 0.9413), 0.057),
}


@pytest.mark.parametrize("name", STARTS)
def test_like_replaced(name):
    (lambda_, kappa), tolerance = STARTS[name]
    model = nn.Sequential(getattr(nn, name)())
    z = torch.linspace(-10, 10, 999)
    expected = model(z)
    inject(model, like=KEPT)
    assert model[0].lambda_param.item() == pytest.approx(lambda_)
    assert model[0].kappa_param.item() == pytest.approx(kappa)
    assert (model(z) - expected).abs().max() < tolerance
    model[0].reset_parameters()
    assert (model(z) - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    "module",
    [nn.ELU(), nn.SELU(), nn.CELU(), nn.ReLU6(), nn.Hardswish(), nn.LeakyReLU(0.2)],
    ids=str,
)
def test_like_nothing(module):
    model = nn.Sequential(nn.ReLU(), module)
    with pytest.raises(ValueError, match=r"come close to .* at 1\. Leave it out by names or types"):
        inject(model, like=KEPT)
    assert model[1] is module and not places(model)
    inject(model)
    assert type(model[1]) is AGLU


def test_leaky_relu_of_little_slope_is_close():
    inject(nn.Sequential(nn.LeakyReLU()), like=KEPT)


def test_published_ranges():
    model = nn.Sequential(*(nn.ReLU() for _ in range(200)), *(nn.Sigmoid() for _ in range(200)))
    inject(model)
    for gate, (low, high) in ((False, (1, 1.3)), (True, (-1, 0))):
        layers = [m for m in model if type(m) is (APA if gate else AGLU)]
        assert len(layers) == 200
        lambdas, kappas = (
            torch.stack([getattr(m, name) for m in layers])
            for name in ("lambda_param", "kappa_param")
        )
        assert 0 <= lambdas.min() < 0.1 and 0.9 < lambdas.max() <= 1
        tenth = (high - low) / 10
        assert low <= kappas.min() < low + tenth and high - tenth < kappas.max() <= high


# ------------------------------------------------------------------- calls in the source


def scaled(method):
    """A decorator with a wrapper of its own."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        return 2 * method(self, *args, **kwargs)

    return wrapper


class Base(nn.Module):
    def prepare(self, x):
        return x + 1


class EveryForm(Base):
    """Each call is a place; ``expected`` is ``forward`` with another function."""

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
    for name in replaced:  # no two places share a module, and none is without effect
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
    """Of the branches, one runs: they share what is in the same place of each."""

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


def test_branches_share_their_places():
    model, x = Branches(), torch.randn(9)
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
def test_options_of_calls_are_looked_at(model):
    with pytest.raises(ValueError, match="come close to leaky_relu at act"):
        inject(model, like=KEPT)
    assert inject(model) == {"act": F.leaky_relu}


class Taken(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.Identity()

    def forward(self, x):
        return self.act(F.relu(x))


def test_a_taken_name():
    model = Taken()
    assert [*inject(model, **SILU)] == ["apa_act"]
    assert type(model.act) is nn.Identity
    assert model(torch.ones(1)).item() == pytest.approx(F.silu(torch.ones(1)).item())


class OwnChildren(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = F.relu(layer(x))
        return x


def test_children_in_a_loop_are_no_place():
    model = nn.Sequential(OwnChildren(nn.Linear(2, 2)), nn.ReLU())
    with pytest.raises(ValueError, match="0.act cannot be a module: the OwnChildren goes through"):
        inject(model)
    assert [*inject(model, "1")] == ["1"]


def test_source_that_cannot_be_read(caplog):
    scope = {"nn": nn, "F": F}
    exec("class Hidden(nn.Module):\n    def forward(self, x):\n        return F.relu(x)", scope)
    with pytest.raises(ValueError, match="No activation of the Hidden"):
        inject(scope["Hidden"]())
    assert "Hidden.forward cannot be read: its calls of relu stay as they are" in caplog.text


def test_transformer_encoders_of_torch():
    """In evaluation they would compute the activation that they were made with."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        before = model(x, src_key_padding_mask=mask)
        assert [*inject(model, **SILU)] == ["layers.0.activation", "layers.1.activation"]
        evaluated = model(x, src_key_padding_mask=mask)
        trained = model.train()(x, src_key_padding_mask=mask)
        torch.testing.assert_close(evaluated[~mask], trained[~mask])
        assert not torch.allclose(evaluated[~mask], before[~mask])
        restore(model.eval())
        assert torch.equal(model(x, src_key_padding_mask=mask), before)


# ------------------------------------------------------------------- classes of others


class SwishMe(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class h_sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class Sigmoid(nn.Module):
    """As timm's gates have it."""

    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sigmoid_() if self.inplace else x.sigmoid()


class Snake(nn.Module):
    def forward(self, x):
        return x + x.sin() ** 2


def test_classes_are_known_by_name():
    model = nn.Sequential(SwishMe(), QuickGELU(), h_sigmoid(), Sigmoid(inplace=True), Snake())
    z = torch.linspace(-10, 10, 99)
    expected = [module(z.clone()) for module in model]
    assert [*inject(model, like=KEPT)] == ["0", "1", "2", "3"]
    assert [type(module) for module in model] == [AGLU, AGLU, APA, APA, Snake]
    for module, values, tolerance in zip(model, expected, (1e-5, 1e-5, 0.06, 1e-6), strict=False):
        assert (module(z) - values).abs().max() < tolerance


def test_classes_of_ones_own():
    model = nn.Sequential(Snake(), nn.ReLU())
    with pytest.raises(ValueError, match="come close to Snake"):
        inject(model, types=Snake, like=KEPT)
    assert [*inject(model, types=[Snake])] == ["0"] and type(model[1]) is nn.ReLU


# ------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    "names, types, expected",
    [
        ("*", "relu", ["0", "1.activation", "2.act"]),
        ("*", nn.ReLU, ["0", "1.activation", "2.act"]),
        ("*", ["sigmoid", "gelu"], ["3", "4"]),
        (["2.*", "[34]"], None, ["2.act", "3", "4"]),
        ("?.act", None, ["2.act"]),
    ],
)
def test_choice(names, types, expected):
    model = nn.Sequential(
        nn.ReLU(), Conv2d(1, 1, 1, activation=F.relu), LastLevelP6P7(1, 1), nn.GELU(), nn.Sigmoid()
    )
    assert sorted(inject(model, names, types=types)) == expected == sorted(places(model))


@pytest.mark.parametrize(
    "args, message",
    [
        ({"names": "head.*"}, "name like 'head.*': there are 0, 1.act"),
        ({"names": ["*", "1.relu"]}, "name like '1.relu'"),
        ({"types": "mish"}, "of these types has a name like '.*', nor any other"),
        ({"types": ["relu", "tanh"]}, "types takes relu, .* or classes, not tanh"),
        ({"like": "relu"}, "like is \"replaced\" or None, not 'relu'"),
        ({"parameters": "one"}, "parameters is shared, per_channel or tied, not 'one'"),
        ({"lambda_range": (-1, 1)}, "cannot be negative"),
        ({"parameters": "per_channel"}, "needs an example"),
        ({"parameters": "per_channel", "example": torch.ones(2)}, "does not run through the model"),
    ],
)
def test_errors_change_nothing(args, message):
    model = nn.Sequential(nn.ReLU(), LastLevelP6P7(1, 1)).train()
    with pytest.raises(ValueError, match=message):
        inject(model, **args)
    assert type(model[0]) is nn.ReLU and type(model[1]) is LastLevelP6P7 and model[0].training
    with pytest.raises(ValueError, match="Nothing is injected in the Sequential"):
        restore(model)


def test_in_turns():
    """Each call takes what is left; restore undoes all of them."""
    block, x = small_resnet().res2[0].eval(), torch.randn(1, 8, 8, 8)
    names, before = [*block.state_dict()], block(x)
    assert [*inject(block, "act2", **SILU)] == ["act2"]
    assert [*inject(block, **SILU)] == ["act1", "act3"]
    with pytest.raises(ValueError, match="nor any other"):
        inject(block)
    other = small_resnet().res2[0].eval()
    other.load_state_dict(block.state_dict(), strict=False)
    inject(other, **SILU)
    assert torch.equal(block(x), other(x))
    restore(block)
    assert [*block.state_dict()] == names and torch.equal(block(x), before)


def test_injected_gives_the_model():
    model = nn.Sequential(nn.ReLU())
    assert injected(model, "0", **SILU) is model and type(model[0]) is AGLU


# ------------------------------------------------------------------- parameters


def test_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.Sigmoid())
    inject(model, parameters="tied")
    assert model[1] is model[2] and model[3] is model[4] and model[1] is not model[3]
    assert len([*model.parameters()]) == 2 + 2 * 2
    clone = copy.deepcopy(model)
    assert clone[1] is clone[2]
    restore(model)
    assert [type(m) for m in model[1:]] == [nn.ReLU, nn.GELU, nn.Sigmoid, nn.Sigmoid]
    with pytest.raises(ValueError, match="2 is another activation than 1: one λ and κ cannot"):
        inject(model, parameters="tied", like=KEPT)
    inject(model, types=["gelu", "sigmoid"], parameters="tied", like=KEPT)


class Varied(nn.Module):
    """One place sees several widths, one is not reached, and one has its channels last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 7)
        self.conv = nn.Conv2d(3, 5, 1)
        self.relu, self.gelu, self.sigmoid = nn.ReLU(), nn.GELU(), nn.Sigmoid()

    def forward(self, x, skip=True):
        for part in (x, x[:, :2]):
            self.relu(part)
        x = self.conv(x)
        x = self.fc(x.permute(0, 2, 3, 1)).relu()
        return self.sigmoid(x.mean(dim=(1, 2))) if skip else self.gelu(x)


def test_per_channel():
    model, x = Varied(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    args = {"parameters": "per_channel", "example": x}
    with pytest.raises(ValueError, match=r"relu saw \[2, 3\]"):
        inject(model, "relu", **args)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="gelu did not run"):
        inject(model, "gelu", **args)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    inject(model, ["act", "sigmoid"], like=KEPT, **args)
    assert model.act.num_channels == model.sigmoid.num_channels == 7
    torch.testing.assert_close(model(x), expected, atol=0.001, rtol=0)
    nn.init.uniform_(model.act.kappa_param, 0.5, 2)
    z = model.fc(model.conv(x).permute(0, 2, 3, 1))
    kappa = model.act.kappa_param.flatten()
    torch.testing.assert_close(model.act(z), z * torch.sigmoid(kappa * z))
    with pytest.raises(ValueError, match="has 7 channels; its input has shape"):
        model.act(torch.ones(2, 7, 3))
    restore(model)
    inject(model, "gelu", parameters="per_channel", example=(x, False))
    assert model.gelu.num_channels == 7


# ------------------------------------------------------------------- what it lives through


@pytest.fixture
def living():
    """A stage with calls in its blocks, an input, and its output."""
    torch.manual_seed(0)
    stage, x = small_resnet().res2.eval(), torch.randn(2, 8, 8, 8)
    inject(stage)
    return stage, x, stage(x)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save", "state_dict"])
def test_copies(living, way, tmp_path):
    stage, x, expected = living
    if way == "deepcopy":
        other = copy.deepcopy(stage)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(stage))
    elif way == "save":
        torch.save(stage, tmp_path / "stage.pth")
        other = torch.load(tmp_path / "stage.pth", weights_only=False)
    else:
        other = small_resnet().res2.eval()
        inject(other)
        other.load_state_dict(stage.state_dict())
    assert torch.equal(other(x), expected)
    assert type(other[0]) is type(stage[0]) and isinstance(other[0], BottleneckBlock)
    nn.init.constant_(other[0].act1.kappa_param, 5)
    assert torch.equal(stage(x), expected) and not torch.equal(other(x), expected)
    restore(other)
    assert type(other[0]) is BottleneckBlock and not places(other) and places(stage)


@pytest.mark.parametrize("way", ["trace", "script", "compile", "export"])
def test_graphs(living, way):
    stage, x, expected = living
    if way == "trace":
        graph = torch.jit.trace(stage, x)
    elif way == "script":
        graph = torch.jit.script(stage)
    elif way == "compile":
        graph = torch.compile(stage, backend="eager", fullgraph=True)
    else:
        graph = torch.export.export(stage, (x,)).module()
    torch.testing.assert_close(graph(x), expected)


def test_gradients_through_checkpoints(living):
    stage, x, _ = living
    stage(x).sum().backward()
    expected = {name: p.grad.clone() for name, p in stage.named_parameters()}
    stage.zero_grad()
    for reentrant in (False, True):
        x = x.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(stage, x, use_reentrant=reentrant).sum().backward()
        for name, parameter in stage.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])
        stage.zero_grad()


def test_distributed(living, tmp_path):
    stage, x, expected = living
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(stage)
        wrapped(x).sum().backward()
        assert stage[0].act1.lambda_param.grad is not None
        assert torch.equal(wrapped(x), expected)
        plain = DistributedDataParallel(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
        with pytest.raises(ValueError, match="Inject before DistributedDataParallel"):
            inject(plain)
        restore(wrapped)
    finally:
        torch.distributed.destroy_process_group()


def test_training_moves_every_place(living):
    stage, x, _ = living
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    stage(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in stage.named_parameters())
