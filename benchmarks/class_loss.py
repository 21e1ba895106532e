"""The class losses against detectron2's cross-entropies, forward and backward."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor

from apa_det import add_apa_config
from apa_det.activation import apa_cross_entropy
from apa_det.modeling.losses import BOX_CLASS_LOSS_REGISTRY, SIGMOID, BoxClassLoss

from .common import DTYPES, ForwardBackward, add_common_arguments, measure, memory_method, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--proposals", type=int, default=8192)
    parser.add_argument("--classes", type=int, default=1203)
    add_common_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    num_classes, device = args.classes, args.device
    dtype = DTYPES[args.dtype]
    logits = torch.randn(args.proposals, num_classes + 1, dtype=dtype, device=device) - 4
    ours = logits[:, :-1].contiguous().requires_grad_()
    logits.requires_grad_()
    gt_classes = torch.randint(num_classes, (64,), device=device).repeat(args.proposals // 64 + 1)
    gt_classes = gt_classes[: args.proposals]  # repeats 64 classes
    gt_classes[args.proposals // 4 :] = num_classes  # 3/4 background, as sampled by RoI heads
    scarce = torch.arange(num_classes, device=device) >= num_classes // 3
    share = torch.tensor(0.1, device=device)
    parameters = [torch.ones(num_classes, requires_grad=True, device=device) for _ in range(2)]
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=1),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        use_sigmoid_ce=True,
    )
    drop = {"scarce": scarce, "share": share, "clamp": 10.0}

    def run_of(function: Callable, x: Tensor, *others, **kwargs) -> ForwardBackward:
        curve = others[0] if others and isinstance(others[0], tuple) else ()
        inputs = [t for t in (x, *others, *curve) if isinstance(t, Tensor) and t.requires_grad]
        return ForwardBackward(partial(function, x, gt_classes, *others, **kwargs), inputs)

    sigmoid_cross_entropy = predictor.sigmoid_cross_entropy_loss
    runs = {
        "detectron2's sigmoid cross-entropy": run_of(sigmoid_cross_entropy, logits),
        "detectron2's softmax cross-entropy": run_of(cross_entropy, logits),
        "Gumbel": run_of(apa_cross_entropy, ours, 0.0, 1.0),
        "APA, per class": run_of(apa_cross_entropy, ours, *parameters),
        "GOL + DropLoss": run_of(apa_cross_entropy, ours, 0.0, 1.0, **drop),
        "GOL + DropLoss, eager": run_of(apa_cross_entropy, ours, 0.0, 1.0, **drop, backend="eager"),
    }
    per_class = tuple(p[None] for p in parameters)
    curves = {"softmax": None, "sigmoid": SIGMOID, "gumbel": (0.0, 1.0), "apa": per_class}
    for name, loss in _registered_losses(num_classes):
        loss.to(device)
        for score, curve in curves.items():
            if score not in loss.class_scores:
                continue
            outputs = ours if curve else logits
            if loss.num_outputs:
                outputs = torch.randn(args.proposals, loss.num_outputs, device=device)
                outputs.requires_grad_()
            runs[f"{name}, {score}"] = run_of(loss, outputs, curve)
    title = f"Class loss, forward and backward of {tuple(ours.shape)} {args.dtype}"
    references = [name for name in runs if name.startswith("detectron2's")]
    report(title, measure(runs, args), references, args, memory_method(device))


def _registered_losses(num_classes: int) -> Iterator[tuple[str, BoxClassLoss]]:
    """Yield each registered loss with default settings, for long-tailed class counts."""
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.DATASETS.TRAIN = ("class_loss_benchmark",)
    MetadataCatalog.get("class_loss_benchmark").set(
        class_image_count=[{"id": i, "image_count": 2000 // i} for i in range(1, num_classes + 1)],
        num_images=100_000,
    )
    for name, loss in BOX_CLASS_LOSS_REGISTRY:
        yield name, loss(cfg)
