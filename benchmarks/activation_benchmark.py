"""The activation and the class loss against their rivals, forward and backward."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from shared_benchmark import (
    DTYPES,
    ForwardBackward,
    add_common_arguments,
    measure,
    report,
    tensor_memory,
)
from torch import Tensor

from apa_det import add_apa_config, aglu
from apa_det.activation import apa_cross_entropy
from apa_det.kernels.ops import BACKENDS
from apa_det.modeling.losses import BOX_CLASS_LOSS_REGISTRY, SIGMOID, BoxClassLoss

EAGER_FORMULA, COMPILED_FORMULA = "formula, eager PyTorch", "formula, torch.compile"
COPY = "copy of the same bytes"


def add_activation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 256, 200, 272])
    add_common_arguments(parser)
    parser.set_defaults(run=benchmark_activation)


def formula(z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """AGLU as it is written in the paper, left to autograd."""
    return (z * (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)).to(z.dtype)


def benchmark_activation(args: argparse.Namespace) -> None:
    place = {"device": args.device}
    z = torch.randn(args.shape, dtype=DTYPES[args.dtype], requires_grad=True, **place)
    grad = torch.randn_like(z)
    parameters = [torch.full((1,), v, requires_grad=True, **place) for v in (0.5, 1.1)]

    def both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> ForwardBackward:
        return ForwardBackward(partial(function, *inputs), list(inputs), grad)

    runs: dict[str, Callable] = {"SiLU": both_ways(F.silu, z), "ReLU": both_ways(F.relu, z)}
    ours = []
    for name, backend in BACKENDS.items():
        if name == "eager" or backend.supports(z, *parameters):
            ours.append(f"AGLU, {name}")
            runs[ours[-1]] = both_ways(partial(aglu, backend=name), z, *parameters)
    runs[EAGER_FORMULA] = both_ways(formula, z, *parameters)
    runs[COMPILED_FORMULA] = both_ways(torch.compile(formula), z, *parameters)
    # Forward reads one tensor and writes one, backward reads two and writes one.
    source = torch.randn(max(5 * z.numel() // 2, 1), dtype=z.dtype, **place)
    runs[COPY] = partial(torch.empty_like(source).copy_, source)
    results = measure(runs, args)
    title = f"AGLU, forward and backward of {tuple(z.shape)} {args.dtype}"
    against = ["SiLU", EAGER_FORMULA]
    report(title, results, against, args, tensor_memory(args.device))
    for name in ours:
        if "seconds" in results[name]:
            share = results[COPY]["seconds"] / results[name]["seconds"]
            print(f"{name}: {share:.0%} of the bandwidth of the copy.")


def add_class_loss_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--proposals", type=int, default=8192)
    parser.add_argument("--classes", type=int, default=1203)
    add_common_arguments(parser)
    parser.set_defaults(run=benchmark_class_loss)


def benchmark_class_loss(args: argparse.Namespace) -> None:
    num_classes, place = args.classes, {"device": args.device}
    logits = torch.randn(args.proposals, num_classes + 1, dtype=DTYPES[args.dtype], **place) - 4
    ours = logits[:, :-1].contiguous().requires_grad_()
    logits.requires_grad_()
    gt_classes = torch.randint(num_classes, (64,), **place).repeat(args.proposals // 64 + 1)
    gt_classes = gt_classes[: args.proposals]  # of a few classes at a time
    gt_classes[args.proposals // 4 :] = num_classes  # as many as are sampled of each picture
    scarce = torch.arange(num_classes, device=args.device) >= num_classes // 3
    share = torch.tensor(0.1, **place)
    parameters = [torch.ones(num_classes, requires_grad=True, **place) for _ in range(2)]
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=1),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        use_sigmoid_ce=True,
    )
    drop = {"scarce": scarce, "share": share, "clamp": 10.0}

    def both_ways(inputs: list[Tensor], function: Callable, *others, **kwargs) -> ForwardBackward:
        return ForwardBackward(partial(function, *others, **kwargs), inputs)

    gumbel = ours, gt_classes, 0.0, 1.0
    runs = {
        "detectron2's sigmoid cross-entropy": both_ways(
            [logits], predictor.sigmoid_cross_entropy_loss, logits, gt_classes
        ),
        "detectron2's softmax cross-entropy": both_ways(
            [logits], cross_entropy, logits, gt_classes
        ),
        "Gumbel": both_ways([ours], apa_cross_entropy, *gumbel),
        "APA, per class": both_ways(
            [ours, *parameters], apa_cross_entropy, ours, gt_classes, *parameters
        ),
        "GOL + DropLoss": both_ways([ours], apa_cross_entropy, *gumbel, **drop),
        "GOL + DropLoss, eager": both_ways(
            [ours], apa_cross_entropy, *gumbel, **drop, backend="eager"
        ),
    }
    for name, loss in _registered_losses(num_classes):
        loss.to(args.device)
        for score, curve in (("softmax", None), ("sigmoid", SIGMOID), ("gumbel", (0.0, 1.0))):
            if score not in loss.class_scores:
                continue
            outputs = ours if curve else logits
            if loss.num_outputs:
                outputs = torch.randn(args.proposals, loss.num_outputs, **place).requires_grad_()
            runs[f"{name}, {score}"] = both_ways([outputs], loss, outputs, gt_classes, curve)
    title = f"Class loss, forward and backward of {tuple(ours.shape)} {args.dtype}"
    references = [name for name in runs if name.startswith("detectron2's")]
    report(title, measure(runs, args), references, args, tensor_memory(args.device))


def _registered_losses(num_classes: int) -> Iterator[tuple[str, BoxClassLoss]]:
    """Every loss of the registry with its default settings, for classes with a long tail."""
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
