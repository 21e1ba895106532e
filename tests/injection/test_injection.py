"""What apa_det.inject puts where, with which parameters, and what the model lives through then."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apa_det import AGLU, APA, inject, restore
from apa_det.modeling import injected

SILU = dict(lambda_range=(1.0, 1.0), kappa_range=(1.0, 1.0))  # AGLU is SiLU there


def places(model):
    return [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, APA)]


def small_stage():
    blocks = ResNet.make_stage(
        BottleneckBlock,
        2,
        stride_per_block=[2, 1],
        in_channels=8,
        out_channels=16,
        norm="BN",
        bottleneck_channels=4,
    )
    return nn.Sequential(*blocks)


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
    inject(model, like="replaced")
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
    with pytest.raises(ValueError, match=r'come close to .* at 1\. Leave it out by .*\("!1"\)'):
        inject(model, like="replaced")
    assert model[1] is module and not places(model)
    inject(model)
    assert type(model[1]) is AGLU


def test_leaky_relu_of_little_slope_is_close():
    inject(nn.Sequential(nn.LeakyReLU()), like="replaced")


def test_ranges_close_to_relu():
    """Of the configs: near enough for trained weights, and far enough to learn."""
    gradients = []
    for kappa in (20.0, 300.0):
        model, z = nn.Sequential(nn.ReLU()), torch.linspace(-10, 10, 20001)
        expected = model(z)
        inject(model, lambda_range=(1, 1), kappa_range=(kappa, kappa))
        assert 0.27 / kappa < (model(z) - expected).abs().max() < 0.28 / kappa
        model(z).sum().backward()
        gradients.append((model[0].kappa_param.grad.item(), model[0].lambda_param.grad.item()))
    (kappa_20, lambda_20), (kappa_300, lambda_300) = gradients
    assert kappa_20 / kappa_300 == pytest.approx(15**3, rel=0.01)
    assert lambda_20 / lambda_300 == pytest.approx(15**2, rel=0.01)


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
    assert [*inject(model, like="replaced")] == ["0", "1", "2", "3"]
    assert [type(module) for module in model] == [AGLU, AGLU, APA, APA, Snake]
    for module, values, tolerance in zip(model, expected, (1e-5, 1e-5, 0.06, 1e-6), strict=False):
        assert (module(z) - values).abs().max() < tolerance


def test_classes_of_ones_own():
    model = nn.Sequential(Snake(), nn.ReLU())
    with pytest.raises(ValueError, match="come close to Snake"):
        inject(model, types=Snake, like="replaced")
    assert [*inject(model, types=[Snake])] == ["0"] and type(model[1]) is nn.ReLU


# ------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    "names, types, expected",
    [
        ("*", "relu", ["0", "1.activation", "2.act"]),
        ("*", nn.ReLU, ["0", "1.activation", "2.act"]),
        ("*", ["sigmoid", "gelu"], ["3", "4"]),
        (["2.*", "[34]"], None, ["2.act", "3", "4"]),
        (["!?.act*", "!4"], None, ["0", "3"]),
        (["[0-2]*", "!2.*"], None, ["0", "1.activation"]),
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
        ({"names": "!head.*"}, "name like '!head.*'"),
        ({"names": ["0", "!*"]}, r"names leave out every activation: 0, !\*"),
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
    block, x = small_stage()[0].eval(), torch.randn(1, 8, 8, 8)
    names, before = [*block.state_dict()], block(x)
    assert [*inject(block, "act2", **SILU)] == ["act2"]
    assert [*inject(block, **SILU)] == ["act1", "act3"]
    with pytest.raises(ValueError, match="nor any other"):
        inject(block)
    other = small_stage()[0].eval()
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
        inject(model, parameters="tied", like="replaced")
    inject(model, types=["gelu", "sigmoid"], parameters="tied", like="replaced")


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


def test_tied_with_hooks():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    model[1].register_forward_hook(print)
    with pytest.raises(ValueError, match="1 has hooks, which a module that all places share"):
        inject(model, parameters="tied")


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
    inject(model, ["act", "sigmoid"], like="replaced", **args)
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
    stage, x = small_stage().eval(), torch.randn(2, 8, 8, 8)
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
        other = small_stage().eval()
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype(dtype):
    """That of the neighbours, in any direction."""
    model, x = nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.Sequential(nn.ReLU())), torch.ones(3)
    inject(model.to(dtype), types=["relu", nn.PReLU])
    assert {p.dtype for p in model.parameters()} == {dtype} == {model(x.to(dtype)).dtype}
    restore(model.float())
    assert {p.dtype for p in model.parameters()} == {torch.float32} == {model(x).dtype}


def test_modes(living):
    stage, _, _ = living
    stage[1].train()
    restore(stage)
    inject(stage)
    assert not stage[0].act1.training and stage[1].act1.training


def test_hooks():
    """They stay, and can be removed, whatever is in the place."""
    model, calls = nn.Sequential(nn.ReLU(), nn.ReLU()), []
    first = model[0].register_forward_hook(lambda module, *_: calls.append(type(module)))
    model[1].register_full_backward_hook(lambda module, *_: calls.append(type(module)))
    x = torch.ones(2, requires_grad=True)
    model(x).sum().backward()
    inject(model)
    model(x).sum().backward()
    first.remove()
    model(x).sum().backward()
    restore(model)
    model(x).sum().backward()
    assert calls == [nn.ReLU, nn.ReLU, AGLU, AGLU, AGLU, nn.ReLU]


def test_data_parallel(living):
    stage, x, expected = living
    restore(stage)
    wrapped = nn.DataParallel(stage)
    assert [*inject(wrapped, "module.0.*", **SILU)] == [f"module.0.act{i}" for i in (1, 2, 3)]
    replica = stage[0]._replicate_for_data_parallel()
    assert type(replica) is type(stage[0]) and not torch.equal(wrapped(x), expected)


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
