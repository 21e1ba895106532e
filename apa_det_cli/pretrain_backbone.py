"""Pretrain a backbone as an image classifier.

A thin program around timm, which must be installed. The defaults are the published recipe for
ImageNet-1k, for 4 processes: torchrun --nproc-per-node 4 tools/pretrain.py DATA --output DIR
"""

import argparse

from .flags import add_import, command_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    result.add_argument(
        "data",
        metavar="DATA",
        help="a folder with the folders train and val, each with a folder of images per class",
    )
    result.add_argument("--output", required=True, metavar="DIR", help="folder for the checkpoints")
    depths = (18, 34, 50, 101, 152)
    result.add_argument(
        "--model",
        default="apa_resnet50",
        choices=[f"apa_resnet{depth}" for depth in depths],
        help="default: apa_resnet50",
    )
    result.add_argument("--activation", default="aglu", help="of the backbone (default: aglu)")
    result.add_argument(
        "--gate", default="se", help="of the backbone: se, plain_se, cbam, ... (default: se)"
    )
    for flag, default, text in (
        ("epochs", 100, "number of epochs"),
        (
            "warmup-epochs",
            3,
            "epochs of linear warm-up from 0.01 of the learning rate, before the cosine",
        ),
        ("batch-size", 64, "images per process and step"),
        ("lr", 0.256, "learning rate"),
        ("weight-decay", 6.103515625e-05, "of all parameters but λ and κ"),
        ("momentum", 0.875, "of SGD"),
        ("mixup", 0.2, "α of mixup; 0: none"),
        ("cutmix", 0.0, "α of CutMix; 0: none"),
        ("label-smoothing", 0.0, "label smoothing"),
        ("train-size", 192, "side of the training crops"),
        ("val-size", 224, "side of the evaluation crops"),
        ("ema-decay", 0.0, "decay of a moving average of the weights, e.g. 0.9999; 0: none"),
        ("workers", 4, "data workers per process"),
        ("seed", 0, "seed"),
    ):
        result.add_argument(
            f"--{flag}", type=type(default), default=default, help=f"{text} (default: {default})"
        )
    result.add_argument(
        "--auto-augment",
        default="original",
        metavar="POLICY",
        help="timm's name of a policy, e.g. original or rand-m9; empty: none (default: original)",
    )
    result.add_argument("--amp", action="store_true", help="mixed precision")
    result.add_argument("--device", default="", help="default: a GPU if there is one")
    result.add_argument("--resume", default="", metavar="FILE", help="a last.pth.tar to go on from")
    add_import(result)
    return result


def run(args: argparse.Namespace) -> None:
    import dataclasses
    import os

    from apa_det.pretraining import Settings, pretrain

    names = [field.name for field in dataclasses.fields(Settings)]
    best = pretrain(Settings(**{name: getattr(args, name) for name in names}))
    if os.environ.get("RANK", "0") != "0":
        return
    path = os.path.join(args.output, "model_best.pth.tar")
    averages = " Its averages are loaded after convert-checkpoint --ema." if args.ema_decay else ""
    print(f"Best top-1 accuracy: {best:.2f} %. MODEL.WEIGHTS takes {path}.{averages}")
