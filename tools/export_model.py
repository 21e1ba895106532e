#!/usr/bin/env python3
"""Export a detector, and compare what the exported file gives with what the model gives.

The flags are those of detectron2's tools/deploy/export_model.py.
"""

import argparse
import logging
import os
import sys
import warnings

import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from apa_det import fuse
from apa_det.engine import StrictCheckpointer, load_for_evaluation, read_config
from apa_det.engine.setup.checks import require_weights
from apa_det.engine.setup.lazy import read_lazy_config
from apa_det.export import (
    BOX_TOLERANCE,
    FEATURE_TOLERANCE,
    SCORE_TOLERANCE,
    Backbone,
    Detector,
    compare,
    compare_features,
    export_backbone,
    export_onnx,
    export_scripting,
    export_tracing,
    load_exported,
)

FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "torch_export": "backbone.pt2"}


def run(args: argparse.Namespace) -> None:
    if args.format != "torchscript" and args.export_method != "tracing":
        raise ValueError("--export-method scripting is for --format torchscript.")
    model, augmentation, image_format = load(args)
    images = {file: read(file, augmentation, image_format) for file in args.sample_image}
    first = next(iter(images.values()))
    os.makedirs(args.output, exist_ok=True)
    file = os.path.join(args.output, FILES[args.format])
    export(fuse(model) if args.fuse else model, first, file, args)
    print(f"Wrote {file} ({os.path.getsize(file) / 2**20:.1f} MB):")
    describe_file = describe_backbone if args.format == "torch_export" else describe_detector
    size = tuple(first.shape[1:]) if args.fixed_size else ("H", "W")
    print(tabulate(describe_file(model, first, size, image_format), tablefmt="plain"))
    if args.fixed_size:
        images = {name: image for name, image in images.items() if image.shape == first.shape}
    else:
        _, height, width = first.shape
        name = f"{args.sample_image[0]}, cropped"
        images[name] = first[:, : height * 3 // 4, : width * 2 // 3].contiguous()
    if args.format == "torch_export":
        check_features(model, file, images)
    else:
        check_detections(model, file, images)


def export(model: nn.Module, image: Tensor, file: str, args: argparse.Namespace) -> None:
    if args.format == "torch_export":
        torch.export.save(export_backbone(model, image, dynamic=not args.fixed_size), file)
        return
    if len(Detector(model)(image)["scores"]) == 0:
        raise ValueError(
            f"The model finds nothing in {args.sample_image[0]}: give a picture in which it does."
        )
    if args.format == "onnx":
        export_onnx(model, image, file, dynamic=not args.fixed_size)
    elif args.export_method == "scripting":
        export_scripting(model).save(file)
    else:
        export_tracing(model, image).save(file)


def describe_detector(model: nn.Module, image: Tensor, size: tuple, image_format: str) -> list:
    """The input and the outputs of the file, a row each."""
    height, width = size
    shape = f"({len(image)}, {height}, {width})"
    rows = [["image", "float32", shape, f"{image_format}, 0 to 255, resized as for testing"]]
    notes = {
        "boxes": "x0, y0, x1, y1 in pixels of the image",
        "masks": "probabilities on each box; in the mask from 0.5 on, once resized to it",
    }
    for name, values in Detector(model)(image).items():
        shape = ", ".join(["N", *map(str, values.shape[1:])]) + "," * (values.dim() == 1)
        rows.append([name, str(values.dtype).removeprefix("torch."), f"({shape})", notes.get(name)])
    return rows


def describe_backbone(model: nn.Module, image: Tensor, size: tuple, image_format: str) -> list:
    """The input and the outputs of the file, a row each."""
    backbone = Backbone(model)
    number, height, width = "N", "H", "W"
    if size != ("H", "W"):
        number, _, height, width = backbone.batch(image).shape
    note = (
        f"{image_format}, 0 to 255, resized as for testing, padded to multiples of {backbone.step}"
    )
    rows = [["images", "float32", f"({number}, {len(image)}, {height}, {width})", note]]
    for name, level in model.backbone.output_shape().items():
        shape = f"({number}, {level.channels}, {height} / {level.stride}, {width} / {level.stride})"
        rows.append([name, "float32", shape, ""])
    return rows


def check_detections(model: nn.Module, file: str, images: dict[str, Tensor]) -> None:
    detector, exported = Detector(model), load_exported(file)
    found = {name: compare(detector(image), exported(image)) for name, image in images.items()}
    rows = [[name, written(images[name]), *difference] for name, difference in found.items()]
    header = ["picture", "size", "model's", "file's", "compared", "boxes [px]", "scores", "masks"]
    print(tabulate(rows, header, floatfmt=".1e"))
    for name, difference in found.items():
        if not difference.is_small:
            raise ValueError(
                f"{file} finds other objects than the model in {name}: boxes differ by up to "
                f"{difference.boxes:.3g} pixels and scores by {difference.scores:.2g}, beyond "
                f"{BOX_TOLERANCE} and {SCORE_TOLERANCE}."
            )


def check_features(model: nn.Module, file: str, images: dict[str, Tensor]) -> None:
    backbone, exported = Backbone(model), torch.export.load(file).module()
    rows = []
    for name, image in images.items():
        batch = backbone.batch(image)
        with torch.no_grad():
            difference = compare_features(backbone(batch), exported(batch))
        rows.append([name, written(batch[0]), difference])
    print(tabulate(rows, ["picture", "size, padded", "features, of the largest"], floatfmt=".1e"))
    for name, _, difference in rows:
        if not difference <= FEATURE_TOLERANCE:
            raise ValueError(
                f"{file} gives other features than the model for {name}: they differ by up to "
                f"{difference:.2g} of the largest, beyond {FEATURE_TOLERANCE}."
            )


def written(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"


def load(args: argparse.Namespace) -> tuple[nn.Module, T.Augmentation, str]:
    """The model in evaluation mode, and how it wants its pictures: resized, and in which format."""
    use_cuda = args.format == "torchscript" and torch.cuda.is_available()
    if args.config_file.endswith(".py"):
        cfg = read_lazy_config(args)
        weights = cfg.train.init_checkpoint
        require_checkpoint(weights, "train.init_checkpoint")
        model = instantiate(cfg.model).to(cfg.train.device if use_cuda else "cpu")
        ema = cfg.train.get("ema")
        StrictCheckpointer(model, averaged=bool(ema and ema.enabled)).load(weights)
        mapper = cfg.dataloader.test.mapper
        return (
            model.eval(),
            T.AugmentationList(instantiate(mapper.augmentations)),
            mapper.image_format,
        )
    cfg = read_config(args)
    require_checkpoint(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    if not use_cuda:
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    load_for_evaluation(cfg, model)
    size = cfg.INPUT.MIN_SIZE_TEST
    return model.eval(), T.ResizeShortestEdge(size, cfg.INPUT.MAX_SIZE_TEST), cfg.INPUT.FORMAT


def require_checkpoint(weights: str, key: str) -> None:
    if not weights:
        raise ValueError(f"Give the checkpoint to export as {key}.")
    require_weights(weights, "", key, eval_only=False, resume=False)


def read(file: str, augmentation: T.Augmentation, image_format: str) -> Tensor:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"There is no picture {file}.")
    picture = T.AugInput(read_image(file, format=image_format))
    augmentation(picture)
    return torch.from_numpy(picture.image.transpose(2, 0, 1).astype("float32"))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument(
        "--config-file", required=True, metavar="FILE", help="a .yaml or .py config"
    )
    result.add_argument(
        "--format",
        choices=FILES,
        default="torchscript",
        help="torch_export exports the backbone alone (default torchscript)",
    )
    result.add_argument(
        "--export-method",
        choices=("tracing", "scripting"),
        default="tracing",
        help="how TorchScript is made (default tracing)",
    )
    result.add_argument(
        "--sample-image",
        required=True,
        action="append",
        metavar="FILE",
        help="a picture to compare on; may be given several times, and the model is traced on the "
        "first",
    )
    result.add_argument(
        "--fixed-size", action="store_true", help="only pictures as large as the first, resized"
    )
    result.add_argument("--fuse", action="store_true", help="fold norms into convolutions first")
    result.add_argument("--output", default="./output", metavar="DIR", help="default ./output")
    result.add_argument(
        "opts", nargs=argparse.REMAINDER, help="overrides of the config, MODEL.WEIGHTS among them"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    warnings.filterwarnings("ignore", "torch.meshgrid|The given buffer is not wri|pkg_resources is")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        run(args)
    except (ImportError, OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
