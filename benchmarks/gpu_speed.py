"""Speed of the kernels and of a detector on a device, for gpu_check.py."""

import argparse
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from apa_det import aglu
from apa_det.activation import apa_cross_entropy
from apa_det.engine.ema import build_ema
from apa_det.engine.step import StepTrainer
from apa_det.layers import EvalBatchNorm2d
from apa_det.modeling import APABottleneckBlock
from apa_det.modeling.losses import look_up_frequencies

from . import common, models
from .gpu_report import Report
from .gpu_training import batch_of, detector
from .layers import SEBottleneckBlock

# Tensors of gates, of small and middle sizes, and the stages of a ResNet at 800 × 1333
SHAPES = [
    *((1, 256, 1, 1), (1, 64, 16, 16), (2, 256, 64, 64), (2, 256, 100, 136)),
    *((2, 64, 400, 667), (2, 256, 200, 334), (2, 512, 100, 167), (2, 1024, 50, 84)),
    (2, 2048, 25, 42),
]
SMALL_SHAPES = [(1, 256, 1, 1), (1, 64, 16, 16)]
_SYNCING = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal")
_ALLOWED = ("_to_host",)  # functions of apa_det that wait for the device once in a step
_ON_HOST = ("ema.py", "activation.py")  # read tensors that are on the CPU on every device


def seconds_of(runs: dict[str, Callable], report: Report) -> dict[str, float]:
    """Return the median seconds of each run, of interleaved repeats."""
    common.MIN_SECONDS = 0.001 if report.small else 0.02
    return common.interleaved(runs, 1 if report.small else 5, report.device)


def _forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> common.ForwardBackward:
    grad = torch.randn_like(function(*inputs))
    return common.ForwardBackward(partial(function, *inputs), [*inputs], grad)


def measure_bandwidth(report: Report) -> None:
    bytes_ = 2**20 if report.small else 2**30
    source = torch.randint(256, (bytes_,), dtype=torch.uint8, device=report.device)
    target = torch.empty_like(source)
    seconds = seconds_of({"copy": lambda: target.copy_(source)}, report)["copy"]
    report.value("copy on the device", 2 * bytes_ / seconds / 1e9, "GB/s", "read and written")


def measure_activation(report: Report) -> None:
    shapes = SMALL_SHAPES if report.small else SHAPES
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            if not report.has_time(f"AGLU of {shape}"):
                return
            z = torch.randn(shape, dtype=dtype, device=report.device, requires_grad=True)
            curve = [
                torch.full((1,), v, device=report.device, requires_grad=True) for v in (0.5, 1.1)
            ]
            runs = {
                "SiLU": _forward_backward(F.silu, z),
                "ReLU": _forward_backward(F.relu, z),
                "AGLU": _forward_backward(aglu, z, *curve),
            }
            times = seconds_of(runs, report)
            moved = 5 * z.numel() * z.element_size()  # 1 + 1 forward, 2 + 1 backward
            title = f"AGLU of {shape} {str(dtype)[6:]}"
            rate = f"{moved / times['AGLU'] / 1e9:.0f} GB/s; "
            ratios = [f"{times['AGLU'] / times[n]:.2f} of {n}" for n in ("SiLU", "ReLU")]
            report.value(title, 1e6 * times["AGLU"], "µs", rate + ", ".join(ratios))


def measure_block(report: Report) -> None:
    shape = (1, 32, 8, 8) if report.small else (2, 256, 200, 334)
    channels = shape[1]
    sizes = {"bottleneck_channels": channels // 4, "norm": EvalBatchNorm2d}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(shape, device=report.device, dtype=dtype, requires_grad=True)
        blocks = {
            "ReLU, sigmoid gate": SEBottleneckBlock(channels, channels, **sizes),
            "AGLU, APA gate": APABottleneckBlock(
                channels, channels, activation="aglu", gate="se", **sizes
            ),
        }
        runs = {}
        for name, block in blocks.items():
            block.to(report.device)
            forward = partial(_autocast, block, x, dtype)
            inputs = [x, *block.parameters()]
            runs[name] = common.ForwardBackward(forward, inputs, torch.randn_like(x))
        ours, reference = reversed(seconds_of(runs, report).values())
        note = f"{ours / reference:.2f} of ReLU with a sigmoid gate"
        report.value(f"block of {shape} {str(dtype)[6:]}", 1e3 * ours, "ms", note)


def _autocast(block: torch.nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        return block(x).to(dtype)


def measure_class_loss(report: Report) -> None:
    n, k = (32, 20) if report.small else (8192, 1203)
    logits = torch.randn(n, k, device=report.device).sub(4).requires_grad_()
    gt_classes = torch.randint(k + 1, (n,), device=report.device)
    targets = F.one_hot(gt_classes, k + 1)[:, :k].float()
    drop = {"scarce": torch.arange(k, device=report.device) > k // 3, "clamp": 10.0}
    drop["share"] = torch.tensor(0.1, device=report.device)
    reference = partial(F.binary_cross_entropy_with_logits, logits, targets, reduction="sum")
    gumbel = partial(apa_cross_entropy, logits, gt_classes, 0.0, 1.0)
    runs = {"sigmoid": reference, "Gumbel": gumbel, "GOL + DropLoss": partial(gumbel, **drop)}
    runs = {name: common.ForwardBackward(run, [logits]) for name, run in runs.items()}
    times = seconds_of(runs, report)
    for name in ("Gumbel", "GOL + DropLoss"):
        note = f"{times[name] / times['sigmoid']:.2f} of torch's sigmoid cross-entropy"
        report.value(f"{name}, {n} × {k}", 1e6 * times[name], "µs", note)


def measure_step(report: Report) -> None:
    _measure_models(report, "step")


def measure_inference(report: Report) -> None:
    _measure_models(report, "inference")


def _measure_models(report: Report, mode: str) -> None:
    names = [models.REFERENCE, "APA"]
    for amp in (False,) if report.small else (False, True):
        if not report.has_time(f"{mode} with AMP" if amp else mode):
            return
        args = argparse.Namespace(device=str(report.device), mode=mode, amp=amp, detections=300)
        args.size, args.batch = ((64, 96), 1) if report.small else ((800, 1333), 2)
        runs = {name: models.prepare(name, args) for name in names}
        times = seconds_of(runs, report)
        title = f"{mode} of {args.batch} images of {args.size[0]}×{args.size[1]}"
        note = f"{times['APA'] / times[models.REFERENCE]:.2f} of ReLU with sigmoid gates"
        title += f", AMP in {models.amp_dtype(args)}" if amp else ", float32"
        report.value(title, 1e3 * times["APA"], "ms", note)


def measure_launches(report: Report) -> None:
    """Measure the host's time for a call on a tiny tensor, and count the launched kernels."""
    z = torch.randn(1, 8, 2, 2, device=report.device, requires_grad=True)
    curve = [torch.full((1,), v, device=report.device, requires_grad=True) for v in (0.5, 1.1)]
    runs = {"SiLU": _forward_backward(F.silu, z), "AGLU": _forward_backward(aglu, z, *curve)}
    number = 20 if report.small else 500
    for name, run in runs.items():
        run()
        common.synchronize(report.device)
        start = time.perf_counter()
        for _ in range(number):
            run()
        host = (time.perf_counter() - start) / number  # kernels of so few elements end at once
        with profile(activities=_activities(report.device)) as profiler:
            run()
            common.synchronize(report.device)
        launches = _count(profiler, "LaunchKernel")
        report.value(f"{name}, forward and backward", 1e6 * host, "µs", f"{launches} launches")
    model, batch = detector(report.device), batch_of(2, 64 if report.small else 320)
    step = _step_of(model, [batch] * 3)
    with EventStorage():
        step.run_step()
        with profile(activities=_activities(report.device)) as profiler:
            step.run_step()
            common.synchronize(report.device)
    waits = _count(profiler, "Synchronize")
    note = f"{waits} waits for the device"
    report.value("launches of a training step", _count(profiler, "LaunchKernel"), "", note)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")


def _count(profiler: profile, text: str) -> int:
    return sum(event.count for event in profiler.key_averages() if text in event.key)


def _step_of(model: torch.nn.Module, batches: list) -> StepTrainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    step = StepTrainer(model, batches, optimizer)
    step.iter = 0
    return step


def find_host_syncs(report: Report) -> None:
    """List the lines of a training step in which the host waits for the device."""
    dataset = "host_syncs_train"
    MetadataCatalog.get(dataset).set(
        class_image_count=[{"id": i, "image_count": 100 // i} for i in range(1, 17)],
        num_images=100,
    )
    loss = "MODEL.ROI_BOX_HEAD.CLASS_LOSS"
    for name in ("CrossEntropy", "FederatedLoss", "DropLoss")[: 2 if report.small else 3]:
        score = "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "gumbel"
        model = detector(report.device, loss, name, *score, "DATASETS.TRAIN", (dataset,))
        look_up_frequencies(model)
        ema = build_ema(model, 0.9)
        batches = [batch_of(2, 64 if report.small else 160, seed=i) for i in range(4)]
        step = _step_of(model, batches)
        with EventStorage():
            for _ in range(2):  # tables of anchors and the like are made once
                step.run_step()
                ema.update_parameters(model)
            with _waits(report.device) as places:
                step.run_step()
                ema.update_parameters(model)
        ours = {p: n for p, n in places.items() if p.startswith("apa_det/")}
        allowed = _ALLOWED if report.device.type == "cuda" else (*_ALLOWED, *_ON_HOST)
        wrong = {p: n for p, n in ours.items() if not any(a in p for a in allowed)}
        others = sum(places.values()) - sum(ours.values())
        report.expect(f"{name}: apa_det waits once", not wrong, f"also {wrong}" if wrong else "")
        report.value(f"{name}: waits of detectron2 and torch", others, "")
        for place, number in places.most_common(12) if name == "CrossEntropy" else ():
            report.value(f"  {place}", number, "")


class _Dispatched(TorchDispatchMode):
    """Counts the operators that would wait for a GPU, where there is none."""

    def __init__(self, places: Counter):
        super().__init__()
        self._places = places

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name == function.overloadpacket.__name__ for name in _SYNCING):
            self._places[_place()] += 1
        return function(*args, **(kwargs or {}))


def _place() -> str:
    """Return the innermost line of the stack in apa_det or detectron2, else that in torch."""
    for frame in reversed(traceback.extract_stack()):
        for package in ("apa_det", "detectron2", "torchvision"):
            parts = Path(frame.filename).parts
            if package in parts:
                path = "/".join(parts[len(parts) - parts[::-1].index(package) - 1 :])
                return f"{path}:{frame.lineno} in {frame.name}"
    return "torch"


@contextmanager
def _waits(device: torch.device) -> Iterator[Counter]:
    """Count, by place, how often the host waits for a device."""
    places: Counter = Counter()
    if device.type != "cuda":
        with _Dispatched(places):
            yield places
        return

    def note(message, *_, **__) -> None:
        if "synchronizing CUDA operation" in str(message):
            places[_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
