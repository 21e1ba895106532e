"""Correctness of compiled models, mixed precision and trainings on a device, for gpu_check.py."""

import copy
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import apa_det
from apa_det.engine.optimizer import clip_gradients
from apa_det.engine.step import StepTrainer
from apa_det.layers import EvalBatchNorm2d
from apa_det.modeling import APABottleneckBlock

from .gpu_report import Report
from .processes import ROOT

QUICKSTART = ROOT / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml"
_PLACE = re.compile(r"in user code at (\S+)|Recompiling function \S+ in (\S+)")


def detector(device: torch.device, *options: object) -> nn.Module:
    """Build the detector of the quickstart with random weights, in training mode."""
    torch.manual_seed(0)
    return build_model(detector_config(device, *options)).train()


def detector_config(device: torch.device, *options: object) -> CfgNode:
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    cfg.merge_from_file(str(QUICKSTART))
    cfg.merge_from_list(["MODEL.DEVICE", str(device), "MODEL.APA.GATE_DROPOUT", 0.0, *options])
    return cfg


def batch_of(number: int, side: int, seed: int = 0, num_classes: int = 16) -> list[dict]:
    """Return images of noise with boxes, as a training loader yields them."""
    rng = np.random.default_rng(seed)
    batch = []
    for _ in range(number):
        low = rng.uniform(0, side / 2, (6, 2))
        boxes = np.concatenate([low, low + rng.uniform(side / 6, side / 2, (6, 2))], 1)
        instances = Instances((side, side))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.from_numpy(rng.integers(num_classes, size=6))
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]]
        instances.gt_masks = PolygonMasks([[polygon] for polygon in corners])
        image = torch.from_numpy(rng.integers(256, size=(3, side, side), dtype=np.uint8))
        batch.append({"image": image, "instances": instances, "height": side, "width": side})
    return batch


def compile_parts(model: nn.Module, **kwargs) -> None:
    """Compile the parts of a Mask R-CNN whose shapes hardly change, in place.

    The rest of detectron2 depends on the data, and would be recompiled again and again.
    """
    heads = model.roi_heads
    parts = [model.backbone, model.proposal_generator.rpn_head, heads.box_head]
    parts += [heads.box_predictor, getattr(heads.box_predictor, "class_loss", None)]
    for part in parts:
        if part is not None:
            part.compile(**kwargs)


class Events(logging.Handler):
    """Collects graph breaks and recompilations: places in apa_det, and those elsewhere."""

    def __init__(self):
        super().__init__()
        self.ours: list[str] = []
        self.others: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := _PLACE.search(record.getMessage()):
            path = found[1] or found[2]
            kind = "graph break" if found[1] else "recompilation"
            (self.ours if "/apa_det/" in path else self.others).append(f"{kind} at {path}")

    def __enter__(self) -> "Events":
        torch._logging.set_logs(graph_breaks=True, recompiles=True)
        self._logger = logging.getLogger("torch._dynamo")
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_) -> None:
        self._logger.removeHandler(self)
        torch._logging.set_logs()


def losses_and_gradients(
    model: nn.Module, batch: list[dict], seed: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the losses and gradients of a batch, with random numbers that depend on the seed."""
    torch.manual_seed(seed)
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def gradient_error(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest distance of gradients by parameter, relative to the norm of all."""
    total = torch.stack([g.double().norm() for g in expected.values()]).norm()
    distances = [(ours[n].double() - g.double()).norm() for n, g in expected.items()]
    return (torch.stack(distances).max() / total).item()


def check_compile(report: Report) -> None:
    """Compare a compiled block and detector with the eager ones."""
    backend = "eager" if report.small else "inductor"
    for layout in (torch.contiguous_format, torch.channels_last):
        name = "channels-last" if layout == torch.channels_last else "contiguous"
        if report.has_time(f"block, {name}"):
            report.check(f"block, {name}", _block_error(report.device, layout, backend), 1e-4)
    if report.has_time("detector"):
        _check_compiled_detector(report, backend)


def _block_error(device: torch.device, layout: torch.memory_format, backend: str) -> float:
    block = APABottleneckBlock(
        32, 32, bottleneck_channels=16, norm=EvalBatchNorm2d, activation="aglu", gate="se"
    )
    block = block.to(device, memory_format=layout).eval()
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend=backend)
    x = torch.randn(2, 32, 9, 7, device=device).to(memory_format=layout)

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        z = x.clone().requires_grad_()
        out = run(z)
        return [out, *torch.autograd.grad(out.square().sum(), [z, *run.parameters()])]

    pairs = zip(gradients(compiled), gradients(block), strict=True)
    return max(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs)


def _check_compiled_detector(report: Report, backend: str) -> None:
    eager = detector(report.device)
    compiled = copy.deepcopy(eager)
    compile_parts(compiled, backend=backend)
    worst, number = 0.0, 3 if report.small else 6
    with Events() as events:
        for i in range(number):
            if i == 2:
                first, events.ours[:] = [*events.ours], []
            side = 64 if report.small else 160
            batch = batch_of(2, side, seed=i)
            losses, gradients = losses_and_gradients(compiled, batch, i)
            expected = losses_and_gradients(eager, batch, i)
            worst = max(worst, gradient_error(gradients, expected[1]))
            differences = [abs(losses[n] - v) / (abs(v) + 1e-3) for n, v in expected[0].items()]
            worst = max(worst, *differences)
    report.check(f"losses and gradients of {number} steps", worst, 1e-3)
    report.expect("no graph break of apa_det", not any("break" in e for e in first), str(first))
    report.expect("no recompilation after two steps", not events.ours, str(events.ours))
    report.value("graph breaks and recompilations of detectron2", len(events.others), "")


def check_amp(report: Report) -> None:
    """Compare a step in float16 and bfloat16 with one in float32: clipped, with fused SGD."""
    batch = batch_of(2, 64 if report.small else 160)
    updates = {}
    precisions = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
    for name, precision in precisions.items():
        model = detector(report.device)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        clip_gradients(optimizer, "full_model", 1.0)
        step = StepTrainer(model, [batch], optimizer, precision=precision)
        step.iter = 0
        torch.manual_seed(0)
        with EventStorage() as storage:
            step.run_step()
            loss = storage.latest()["total_loss"][0]
        update = {n: p.detach() - before[n] for n, p in model.named_parameters()}
        updates[name] = loss, torch.cat([u.flatten().double() for u in update.values()])
    for name in ("float16", "bfloat16"):
        (loss, update), (exact_loss, exact) = updates[name], updates["float32"]
        report.check(f"{name}: loss", abs(loss - exact_loss) / exact_loss, 0.05)
        length = abs(update.norm() / exact.norm() - 1).item()
        report.check(f"{name}: length of the clipped step", length, 0.02)
        cosine = (update @ exact / update.norm() / exact.norm()).item()
        report.check(f"{name}: 1 - cosine of the step", 1 - cosine, 0.15)


def check_training(report: Report) -> None:
    """Train and evaluate the quickstart in one process of torchrun, on a GPU by NCCL."""
    from apa_det.data import generate_dataset

    iterations, number = (4, 12) if report.small else (60, 160)
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data", Path(folder) / "output"
        generate_dataset(data, num_train=number, num_val=number // 4, image_size=64)
        datasets = [
            [f"quickstart_{s}", str(data / f"{s}.json"), str(data)] for s in ("train", "val")
        ]
        options = {
            **{"DATASETS.LVIS_FORMAT": datasets, "OUTPUT_DIR": output, "SEED": 0},
            **{"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": (), "SOLVER.WARMUP_ITERS": 10},
            **{"INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64},
            **{"SOLVER.EMA.ENABLED": True, "SOLVER.AMP.ENABLED": not report.small},
            "MODEL.DEVICE": report.device,
        }
        flat = [str(x) for pair in options.items() for x in pair]
        command = [sys.executable, "-m", "apa_det_cli", "train", "--config-file", str(QUICKSTART)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        world = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        world |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, **{k: str(v) for k, v in world.items()}}
        done = subprocess.run(
            [*command, *flat], env=environment, capture_output=True, text=True, cwd=folder
        )
        fault = done.stderr[-3000:] if done.returncode else ""
        report.expect("exit status 0", not fault, fault)
        lines = (output / "metrics.json").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    losses = [m["total_loss"] for m in metrics if "total_loss" in m]
    report.expect("finite losses", np.isfinite(losses).all(), f"first and last: {losses[:1]}")
    if not report.small:
        report.expect("the loss falls", losses[-1] < losses[0], f"{losses[0]} to {losses[-1]}")
    results = metrics[-1]
    has_results = {"bbox/AP", "segm/AP"} <= results.keys()
    report.expect("results of boxes and masks", has_results, f"bbox/AP {results.get('bbox/AP')}")
    if "time" in results:
        report.value("time of an iteration", 1e3 * results["time"], "ms")


def check_deformable(report: Report) -> None:
    """Train a step with deformable blocks, which need detectron2's compiled part."""
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError as error:
        report.skip("deformable blocks", f"detectron2 has no compiled part ({error})")
        return
    for modulated in (False, True):
        model = detector(
            report.device,
            *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
            *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
            *("MODEL.RESNETS.DEFORM_MODULATED", modulated),
        )
        losses, gradients = losses_and_gradients(model, batch_of(1, 128), 0)
        is_finite = all(g.isfinite().all() for g in gradients.values())
        kind = "modulated" if modulated else "plain"
        report.expect(f"{kind}: finite losses and gradients", is_finite, str(losses))
