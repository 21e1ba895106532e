"""SE-R50-FPN Mask R-CNN with APA against the same model in detectron2's own layers.

benchmarks/benchmark.py step and inference are its command line; it runs this file for the memory
of each model. So that all models do the same work, the foreground RoIs are the annotated boxes
alone in training, and each image has as many detections in inference.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from evaluation_benchmark import memory
from layer_benchmark import SEBottleneckBlock
from shared_benchmark import DTYPES, add_common_arguments, interleaved, report
from torch import nn
from tqdm import tqdm

import apa_det
from apa_det.layers import norm_from_name

CONFIG = Path(__file__).parents[1] / "configs/LVISv1-InstanceSegmentation/Base-LVISv1-2x.yaml"
BOXES = 16  # in each picture
SCORES = 0.01, 0.5  # in inference, of all classes but one, and of that one

REFERENCE = "ReLU, sigmoid gates (detectron2)"
DETECTRON2 = [
    *("MODEL.BACKBONE.NAME", "build_detectron2_fpn_backbone"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
]
APA = [
    *("MODEL.APA.ACTIVATION", "aglu"),
    *("MODEL.APA.GATE", "se"),
    *("MODEL.ROI_BOX_HEAD.CLASS_SCORE", "gumbel"),
    *("MODEL.ROI_BOX_HEAD.LOGIT_CLAMP", 10.0),
    *("MODEL.ROI_BOX_HEAD.USE_DROP_LOSS", True),
]
MODELS = {
    REFERENCE: [*DETECTRON2, "MODEL.APA.GATE", "se"],
    "ReLU, no gates (detectron2)": DETECTRON2,
    "APA": APA,
}
FUSED = {f"{name}, apa_det.fuse": name for name in (REFERENCE, "APA")}
CHANNELS_LAST = "APA, apa_det.fuse, channels_last"
CPU_SIZE = {"step": (192, 256), "inference": (320, 512)}


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    height, width = CPU_SIZE[task]
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help=f"of the pictures (default 800 1333; on the CPU {height} {width})",
    )
    parser.add_argument("--batch", type=int, help="pictures (default 2; on the CPU 1)")
    if task == "inference":
        parser.add_argument(
            "--detections", type=int, help="in each picture (default 300; on the CPU 20)"
        )
    parser.add_argument("--amp", action="store_true", help="float16 on CUDA, bfloat16 on the CPU")
    add_common_arguments(parser, dtype=False)
    parser.set_defaults(run=main, task=task)


def main(args: argparse.Namespace) -> None:
    is_cuda = args.device.startswith("cuda")
    args.size = args.size or ((800, 1333) if is_cuda else CPU_SIZE[args.task])
    args.batch = args.batch or (2 if is_cuda else 1)
    names = list(MODELS)
    what = "Training step"
    if args.task == "inference":
        args.detections = args.detections or (300 if is_cuda else 20)
        names += [*FUSED, CHANNELS_LAST]
        what = f"Inference with {args.detections} detections a picture"
    memory = tqdm(names, desc="memory of each model", delay=2)
    results = {name: {"peak_mb": peak_of_process(name, args)} for name in memory}
    runs = {name: prepare(name, args) for name in names}
    for name, seconds in interleaved(runs, args.repeats, torch.device(args.device)).items():
        results[name]["seconds"] = seconds
    precision = f"AMP in {amp_dtype(args)}" if args.amp else "float32"
    title = (
        f"{what}, SE-R50-FPN Mask R-CNN, batch of {args.batch}, {args.size[0]}×{args.size[1]}, "
        f"1,203 classes, {precision}"
    )
    kind = "torch.cuda.max_memory_allocated" if is_cuda else "resident memory, less imports,"
    report(title, results, names[:2], args, f"{kind} of a process for each model alone")


def peak_of_process(name: str, args: argparse.Namespace) -> float:
    options = {k: v for k, v in vars(args).items() if k != "run"}
    command = [sys.executable, __file__, name, json.dumps(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} fails in a process of its own: see above.")
    return json.loads(done.stdout.splitlines()[-1])


def worker(name: str, args: argparse.Namespace) -> float:
    """Peak MB of two runs: the second of a training has the optimizer's state too."""
    imports = memory()
    run = prepare(name, args)
    run()
    run()
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return memory() - imports


def amp_dtype(args: argparse.Namespace) -> str:
    return "float16" if args.device.startswith("cuda") else "bfloat16"


def prepare(name: str, args: argparse.Namespace) -> Callable[[], object]:
    torch.manual_seed(0)
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    unfused = "APA" if name == CHANNELS_LAST else FUSED.get(name, name)
    cfg.merge_from_list(MODELS[unfused])
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", args.device),
            *("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.95]),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05),
            *("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.9),
        ]
    )
    if args.task == "inference":
        cfg.TEST.DETECTIONS_PER_IMAGE = args.detections
    model = build_model(cfg)
    for name_, module in model.named_modules():
        if name_.endswith("conv3.norm"):  # untrained blocks must not add up beyond float16
            nn.init.constant_(module.weight, 0.1)
    if name != unfused:
        model = apa_det.fuse(model.eval())
    if name == CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    task = TrainingStep if args.task == "step" else Inference
    run = task(model, pictures(args), args)

    def run_seeded() -> None:
        torch.manual_seed(0)
        run()

    return run_seeded


def pictures(args: argparse.Namespace) -> list[dict]:
    """Noise with octagons on it, for a model of detectron2."""
    height, width = args.size
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    outline = np.stack([np.cos(angles), np.sin(angles)], 1) / 2 + 0.5
    batch = []
    for _ in range(args.batch):
        sides = rng.uniform(0.1, 0.5, (BOXES, 2)) * (width, height)
        corners = rng.random((BOXES, 2)) * ((width, height) - sides)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(np.concatenate([corners, corners + sides], 1))
        instances.gt_classes = torch.from_numpy(rng.integers(1203, size=BOXES))
        instances.gt_masks = PolygonMasks(
            [
                [(corner + outline * side).ravel()]
                for corner, side in zip(corners, sides, strict=True)
            ]
        )
        image = torch.from_numpy(rng.integers(256, size=(3, height, width), dtype=np.uint8))
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


class TrainingStep:
    """Forward, backward and SGD, as detectron2's trainers do, with a loss scale for float16."""

    def __init__(self, model: nn.Module, batch: list[dict], args: argparse.Namespace):
        self.model, self.batch = model.train(), batch
        self.autocast = autocast(args)
        self.scaler = torch.amp.GradScaler(enabled=args.amp and amp_dtype(args) == "float16")
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def __call__(self) -> None:
        with EventStorage(), self.autocast:
            loss = sum(self.model(self.batch).values())
        if not loss.isfinite():
            raise FloatingPointError(f"The loss is {loss}.")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Inference:
    """Pictures to detections, as many of one class as the test keeps."""

    def __init__(self, model: nn.Module, batch: list[dict], args: argparse.Namespace):
        self.model, self.batch = model.eval(), batch
        self.autocast = autocast(args)
        predictor = model.roi_heads.box_predictor
        is_gumbel = getattr(predictor, "class_score", "") == "gumbel"
        with torch.no_grad():
            predictor.cls_score.weight.zero_()
            low, high = (logit(score, is_gumbel) for score in SCORES)
            predictor.cls_score.bias.fill_(low)[0] = high

    @torch.no_grad()
    def __call__(self) -> None:
        with self.autocast:
            self.model(self.batch)


def logit(score: float, is_gumbel: bool) -> float:
    return -math.log(-math.log(score)) if is_gumbel else math.log(score / (1 - score))


def autocast(args: argparse.Namespace) -> torch.autocast:
    kind = torch.device(args.device).type
    return torch.autocast(kind, DTYPES[amp_dtype(args)], enabled=args.amp)


@BACKBONE_REGISTRY.register()
def build_detectron2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet-50-FPN of detectron2's layers, with a sigmoid gate in each block if a gate is set."""
    norm = norm_from_name(cfg.MODEL.RESNETS.NORM)
    gated = cfg.MODEL.APA.GATE == "se"
    stages = ResNet.make_default_stages(
        50, block_class=SEBottleneckBlock if gated else BottleneckBlock, norm=norm
    )
    bottom_up = ResNet(
        BasicStem(input_shape.channels, norm=norm),
        stages,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=LastLevelMaxPool(),
    )


if __name__ == "__main__":
    name, options = sys.argv[1:]
    print(worker(name, argparse.Namespace(**json.loads(options))))
