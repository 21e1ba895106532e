"""Steps in mixed precision and in parts, against gradients of the whole batch."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from apa_det import AGLU, APA, add_apa_config
from apa_det.engine import Trainer, YamlJob, build_optimizer, read_job, setup_job
from apa_det.engine.ema import build_ema
from apa_det.engine.job import autocast_dtype
from apa_det.engine.optimizer import clip_gradients
from apa_det.engine.step import StepTrainer
from apa_det.errors import UserError


class Square(nn.Module):
    """Two losses, each a mean over the images."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(4, 4), AGLU(), nn.Linear(4, 4), APA())

    def forward(self, data):
        hidden = self.fc[:3](torch.stack(list(data)))
        self.dtype = hidden.dtype
        out = self.fc[3](hidden).to(torch.promote_types(hidden.dtype, torch.float32))
        return {"loss_a": out.square().mean(), "loss_b": out.mean()}


def run_step(model, data, optimizer=None, **kwargs):
    """Run one step; return the trainer and the scalars that it wrote."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, [data], optimizer, **kwargs)
    trainer.iter = 0
    with EventStorage() as storage:
        trainer.run_step()
        return trainer, {name: value for name, (value, _) in storage.latest().items()}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(model, other, rtol=1e-6):
    """Compare the gradient of each parameter, relative to its largest element."""
    expected = gradients(other)
    assert any(name.endswith("lambda_param") for name in expected)
    for name, gradient in gradients(model).items():
        error = (gradient - expected[name]).abs().max()
        assert error <= rtol * expected[name].abs().max(), name


def test_bfloat16():
    """The forward pass runs in bfloat16; weights and updates stay in float32."""
    torch.manual_seed(0)
    model, data = Square(), torch.randn(3, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, scalars = run_step(model, data, precision=torch.bfloat16)
    assert scalars["total_loss"] == pytest.approx(scalars["loss_a"] + scalars["loss_b"])
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, before[name] - 0.1 * parameter.grad)


@pytest.mark.parametrize("num_parts", [2, 3, 6])
def test_parts_equal_the_whole_batch(num_parts):
    torch.manual_seed(0)
    model, data = Square().double(), list(torch.randn(6, 4).double())
    whole = copy.deepcopy(model)
    _, scalars = run_step(model, data, num_parts=num_parts)
    _, expected = run_step(whole, data)
    assert_same_gradients(model, whole, rtol=1e-12)
    for name in ("total_loss", "loss_a", "loss_b"):
        assert scalars[name] == pytest.approx(expected[name], rel=1e-12)


def test_parts_in_mixed_precision():
    """Each part runs under autocast; its gradients are summed in float32."""
    torch.manual_seed(0)
    model, data = Square(), list(torch.randn(4, 4))
    expected = copy.deepcopy(model)
    for part in (data[:2], data[2:]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = sum(expected(part).values())
        (loss / 2).backward()
    run_step(model, data, num_parts=2, precision=torch.bfloat16)
    assert_same_gradients(model, expected, rtol=0)


def test_float16_scales_losses():
    """As on a GPU: the sum of the parts is unscaled once; an overflow skips the step."""
    torch.manual_seed(0)
    model, data = Square(), list(torch.randn(4, 4))
    whole = copy.deepcopy(model)
    trainer, scalars = run_step(model, data, num_parts=2, precision=torch.float16)
    _, expected = run_step(whole, data)
    assert model.dtype == torch.float16
    assert_same_gradients(model, whole, rtol=0.05)
    assert scalars["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-2)

    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == 2.0**16
    before = copy.deepcopy(model.state_dict())
    model.fc[0].weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer.data_loader, trainer._data_loader_iter_obj = [data], None
    with EventStorage():
        trainer.run_step()
    assert trainer.grad_scaler.get_scale() == 2.0**15
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    trainer.load_state_dict(state)
    assert trainer.grad_scaler.get_scale() == 2.0**16


class Slope(nn.Module):
    """A loss with gradient 8, of one weight that is 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, data):
        return {"loss": 8 * self.weight.sum() * torch.stack(data).mean()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, None])
@pytest.mark.parametrize("clip_type", ["value", "norm", "full_model"])
def test_clips_unscaled_gradients(clip_type, precision, fused):
    """With loss scaling too, also if the optimizer would unscale in its own step."""
    model = Slope()
    ema = build_ema(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    clip_gradients(optimizer, clip_type, 0.5)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.item()))
    data = [torch.ones(1)] * 4
    trainer, _ = run_step(model, data, optimizer, precision=precision, num_parts=2)
    ema.update_parameters(model)
    assert seen == [pytest.approx(0.5)]
    assert model.weight.item() == ema.module.weight.item() == pytest.approx(-0.05)

    torch.nn.init.zeros_(model.weight)
    trainer.data_loader, trainer._data_loader_iter_obj = [[torch.full((1,), torch.inf)]] * 2, None
    trainer.num_parts, trainer._skip_nonfinite = 1, 1
    with EventStorage():  # an infinite loss is skipped, whatever the precision
        trainer.run_step()
        trainer.data_loader, trainer._data_loader_iter_obj = [data], None
        trainer.run_step()
    assert model.weight.item() == pytest.approx(-0.05)


def test_overflow_with_a_fused_optimizer():
    """The step changes nothing but the scale; the momentum stays too."""
    model, data = Slope(), [torch.ones(1)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    clip_gradients(optimizer, "full_model", 0.5)
    trainer, _ = run_step(model, data, optimizer, precision=torch.float16)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    hook = model.weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer.data_loader, trainer._data_loader_iter_obj = [data] * 2, None
    with EventStorage():
        trainer.run_step()
        assert trainer.grad_scaler.get_scale() == 2.0**15
        torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before)
        hook.remove()
        trainer.run_step()
    assert model.weight.item() == pytest.approx(-0.05 - 0.05 * 1.9)


def test_state_of_another_precision():
    model = Square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half = StepTrainer(model, [], optimizer, precision=torch.float16)
    full = StepTrainer(model, [], optimizer)
    full.load_state_dict(half.state_dict())
    half.load_state_dict(full.state_dict())
    of_detectron2 = {k: v for k, v in full.state_dict().items() if k != "grad_scaler"}
    half.load_state_dict(of_detectron2)


@pytest.mark.parametrize("clip_type", ["value", "norm", "full_model"])
def test_clips_the_sum_of_the_parts(clip_type):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    torch.manual_seed(0)
    model, data = Square().double(), list(torch.randn(4, 4).double())
    whole = copy.deepcopy(model)
    run_step(model, data, build_optimizer(cfg, model), num_parts=4)
    run_step(whole, data, build_optimizer(cfg, whole))
    assert_same_gradients(model, whole, rtol=1e-12)
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(parameter, whole.state_dict()[name], rtol=1e-12, atol=0)


def test_unequal_parts():
    with pytest.raises(UserError, match="split into 3 equal parts, but has 4 images"):
        run_step(Square(), list(torch.randn(4, 4)), num_parts=3)


def test_model_with_a_single_loss():
    model = nn.Linear(4, 1)
    model.forward = lambda data: torch.stack(data).mean() * model.weight.mean()
    _, scalars = run_step(model, list(torch.ones(4, 4)), num_parts=2)
    assert scalars["total_loss"] == pytest.approx(model.weight.mean().item() + 0.1 / 4, rel=1e-5)


def detector(arguments, monkeypatch):
    """A Mask R-CNN in float64, and 4 images of 16 sampled proposals each, 4 with a mask."""
    monkeypatch.setattr(torch, "randperm", torch.arange)  # always sample the same proposals
    nms = proposal_utils.batched_nms  # boxes are always float32
    in_float32 = lambda boxes, scores, *args: nms(boxes, scores.float(), *args)  # noqa: E731
    monkeypatch.setattr(proposal_utils, "batched_nms", in_float32)
    options = [
        *("MODEL.RESNETS.NORM", "GN", "MODEL.APA.GATE", "se", "MODEL.APA.GATE_DROPOUT", 0.0),
        *("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "apa"),
        *("INPUT.RANDOM_FLIP", "none"),
    ]
    cfg = setup_job(arguments(*options)).config
    seed_all_rng(0)
    model = Trainer.build_model(cfg).double()
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    several = [record for record in records if len(record["annotations"]) >= 4]
    return model, [DatasetMapper(cfg)(record) for record in several[:4]]


def test_mask_rcnn_in_parts(arguments, monkeypatch):
    model, data = detector(arguments, monkeypatch)
    whole = copy.deepcopy(model)
    _, scalars = run_step(model, data, num_parts=2)
    _, expected = run_step(whole, data)
    assert expected["roi_head/num_fg_samples"] == 4
    for name in expected:
        if name.startswith("loss"):
            assert scalars[name] == pytest.approx(expected[name], rel=1e-6), name
    assert_same_gradients(model, whole)


@pytest.mark.parametrize(
    "dtype, on_gpu, on_cpu",
    [
        ("", torch.float16, torch.bfloat16),
        ("float16", torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_chosen_precision(arguments, lazy_arguments, dtype, on_gpu, on_cpu):
    jobs = [
        read_job(make.config_file, [*make.opts, *opts])
        for make, opts in (
            (arguments(), ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype)),
            (lazy_arguments(), ("train.amp.enabled=True", f"train.amp.dtype='{dtype}'")),
        )
    ]
    for job in jobs:
        assert autocast_dtype(job, torch.device("cuda", 0)) is on_gpu
        assert autocast_dtype(job, torch.device("cpu")) is on_cpu
        assert autocast_dtype(job.changed({"mixed_precision": False}), torch.device("cpu")) is None
        with pytest.raises(UserError, match=r'(?i)dtype must be one of "", float16, bfloat16; got'):
            key = job.KEYS["amp_dtype"]
            text = "half" if isinstance(job, YamlJob) else ""
            read_job(
                (arguments if text else lazy_arguments)().config_file,
                [key, text] if text else [f"{key}=half"],
            )
