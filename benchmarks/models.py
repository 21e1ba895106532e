"""SE-R50-FPN Mask R-CNN with APA against the same model in layers of detectron2.

The commands step and inference run this module in a process per model to measure its memory. All
models do the same amount of work: in training, only ground-truth boxes are foreground; in
inference, each image has the same number of detections.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable

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
from torch import nn
from tqdm import tqdm

import apa_det
from apa_det.layers import norm_from_name

from .common import DTYPES, add_common_arguments, interleaved, report
from .layers import SEBottleneckBlock
from .processes import ROOT, peak_memory, run_module

CONFIG = ROOT / "configs/LVISv1-InstanceSegmentation/Base-LVISv1-2x.yaml"
BOXES = 16  # per image
SCORES = 0.01, 0.5  # in inference: of all classes but the first, and of the first

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


def add_arguments(parser: argparse.ArgumentParser, mode: str) -> None:
    height, width = CPU_SIZE[mode]
    size = f"image size (default 800 1333; on the CPU {height} {width})"
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help=size)
    parser.add_argument("--batch", type=int, help="images per batch (default 2; on the CPU 1)")
    if mode == "inference":
        parser.add_argument("--detections", type=int, help="per image (default 300; on the CPU 20)")
    parser.add_argument("--amp", action="store_true", help="float16 on CUDA, bfloat16 on the CPU")
    add_common_arguments(parser, dtype=False)
    parser.set_defaults(run=run, mode=mode)


def run(args: argparse.Namespace) -> None:
    is_cuda = args.device.startswith("cuda")
    args.size = args.size or ((800, 1333) if is_cuda else CPU_SIZE[args.mode])
    args.batch = args.batch or (2 if is_cuda else 1)
    names = list(MODELS)
    what = "Training step"
    if args.mode == "inference":
        args.detections = args.detections or (300 if is_cuda else 20)
        names += [*FUSED, CHANNELS_LAST]
        what = f"Inference with {args.detections} detections per image"
    memory = tqdm(names, desc="memory per model", delay=2)
    results = {name: {"peak_mb": peak_of_process(name, args)} for name in memory}
    runs = {name: prepare(name, args) for name in names}
    for name, seconds in interleaved(runs, args.repeats, torch.device(args.device)).items():
        results[name]["seconds"] = seconds
    precision = f"AMP in {amp_dtype(args)}" if args.amp else "float32"
    title = (
        f"{what}, SE-R50-FPN Mask R-CNN, batch of {args.batch}, {args.size[0]}×{args.size[1]}, "
        f"1,203 classes, {precision}"
    )
    kind = "torch.cuda.max_memory_allocated" if is_cuda else "resident memory without imports"
    report(title, results, names[:2], args, f"{kind}, in one process per model")


def peak_of_process(name: str, args: argparse.Namespace) -> float:
    options = {k: v for k, v in vars(args).items() if k != "run"}
    return run_module("models", name, json.dumps(options))


def worker(name: str, args: argparse.Namespace) -> float:
    """Return the peak MB of two runs: the second training step includes the optimizer state."""
    imports = peak_memory()
    run = prepare(name, args)
    run()
    run()
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_memory() - imports


def amp_dtype(args: argparse.Namespace) -> str:
    return "float16" if args.device.startswith("cuda") else "bfloat16"


def prepare(name: str, args: argparse.Namespace) -> Callable[[], object]:
    torch.manual_seed(0)
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    unfused = "APA" if name == CHANNELS_LAST else FUSED.get(name, name)
    cfg.merge_from_list(MODELS[unfused])
    cfg.MODEL.DEVICE, heads = args.device, cfg.MODEL.ROI_HEADS
    heads.IOU_THRESHOLDS, heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST = [0.95], 0.05, 0.9
    if args.mode == "inference":
        cfg.TEST.DETECTIONS_PER_IMAGE = args.detections
    model = build_model(cfg)
    for name_, module in model.named_modules():
        if name_.endswith("conv3.norm"):  # untrained blocks would overflow float16
            nn.init.constant_(module.weight, 0.1)
    if name != unfused:
        model = apa_det.fuse(model.eval())
    if name == CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    mode = TrainingStep if args.mode == "step" else Inference
    run = mode(model, make_images(args), args)

    def run_seeded() -> None:
        torch.manual_seed(0)
        run()

    return run_seeded


def make_images(args: argparse.Namespace) -> list[dict]:
    """Return inputs of a detectron2 model: images of noise with octagons as ground truth."""
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
        shapes = zip(corners, sides, strict=True)
        instances.gt_masks = PolygonMasks([[(c + outline * side).ravel()] for c, side in shapes])
        image = torch.from_numpy(rng.integers(256, size=(3, height, width), dtype=np.uint8))
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


class TrainingStep:
    """Forward, backward and SGD as in detectron2's trainers, with loss scaling for float16."""

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
    """Inference with TEST.DETECTIONS_PER_IMAGE detections of one class per image."""

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
    """Build ResNet-50-FPN in layers of detectron2, with sigmoid gates if a gate is configured."""
    norm = norm_from_name(cfg.MODEL.RESNETS.NORM)
    gated = cfg.MODEL.APA.GATE == "se"
    block_class = SEBottleneckBlock if gated else BottleneckBlock
    stages = ResNet.make_default_stages(50, block_class=block_class, norm=norm)
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
