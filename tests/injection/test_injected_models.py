"""Injected models under copying, graphs, checkpointing, hooks, dtypes and data parallelism."""

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apa_det import AGLU, inject, restore

from .conftest import SILU, injected_names, small_stage


@pytest.fixture
def injected_stage():
    """Return a stage with injected calls, an input and its output."""
    torch.manual_seed(0)
    stage, x = small_stage().eval(), torch.randn(2, 8, 8, 8)
    inject(stage)
    return stage, x, stage(x)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save", "state_dict"])
def test_copies(injected_stage, way, tmp_path):
    stage, x, expected = injected_stage
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
    assert type(other[0]) is BottleneckBlock and not injected_names(other) and injected_names(stage)


@pytest.mark.parametrize("way", ["trace", "script", "compile", "export"])
def test_graphs(injected_stage, way):
    stage, x, expected = injected_stage
    if way == "trace":
        graph = torch.jit.trace(stage, x)
    elif way == "script":
        graph = torch.jit.script(stage)
    elif way == "compile":
        graph = torch.compile(stage, backend="eager", fullgraph=True)
    else:
        graph = torch.export.export(stage, (x,)).module()
    torch.testing.assert_close(graph(x), expected)


def test_gradients_through_checkpoints(injected_stage):
    stage, x, _ = injected_stage
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
    """Injected and restored modules get the dtype of the surrounding parameters."""
    model, x = nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.Sequential(nn.ReLU())), torch.ones(3)
    inject(model.to(dtype), types=["relu", nn.PReLU])
    assert {p.dtype for p in model.parameters()} == {dtype} == {model(x.to(dtype)).dtype}
    restore(model.float())
    assert {p.dtype for p in model.parameters()} == {torch.float32} == {model(x).dtype}


def test_modes(injected_stage):
    stage, _, _ = injected_stage
    stage[1].train()
    restore(stage)
    inject(stage)
    assert not stage[0].act1.training and stage[1].act1.training


def test_hooks():
    """Hooks are kept by inject and restore, and can still be removed."""
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


def test_data_parallel(injected_stage):
    stage, x, expected = injected_stage
    restore(stage)
    wrapped = nn.DataParallel(stage)
    assert [*inject(wrapped, "module.0.*", **SILU)] == [f"module.0.act{i}" for i in (1, 2, 3)]
    replica = stage[0]._replicate_for_data_parallel()
    assert type(replica) is type(stage[0]) and not torch.equal(wrapped(x), expected)


def test_distributed(injected_stage, tmp_path):
    stage, x, expected = injected_stage
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


def test_training_updates_all_parameters(injected_stage):
    stage, x, _ = injected_stage
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    stage(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in stage.named_parameters())


def test_transformer_encoders():
    """The fast path of torch, which computes the original activation, is disabled."""
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
