"""Export a detector and verify the file against the model.

The flags are those of detectron2's tools/deploy/export_model.py.
"""

import argparse
import os

from .flags import add_config_file, add_overrides, command_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    add_config_file(result, required=True)
    result.add_argument(
        "--format",
        choices=("torchscript", "onnx", "torch_export"),
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
        help="an image to verify the file on; may be repeated, the first is the one to trace with",
    )
    result.add_argument(
        "--fixed-size",
        action="store_true",
        help="accept only images of the size of the first one, resized",
    )
    result.add_argument("--fuse", action="store_true", help="fold norms into convolutions first")
    result.add_argument(
        "--output",
        default="./output",
        metavar="DIR",
        help="folder to write into (default %(default)s)",
    )
    add_overrides(result, trailing=True)
    return result


def run(args: argparse.Namespace) -> None:
    from apa_det import fuse
    from apa_det.engine import load_model, read_job
    from apa_det.engine.setup.checks import require_weights
    from apa_det.errors import UserError
    from apa_det.export import describe_file, export_file, read_sample, verify_file
    from apa_det.utils.writable import require_writable_folder

    if args.format != "torchscript" and args.export_method != "tracing":
        raise UserError("--export-method scripting works only with --format torchscript.")
    require_writable_folder(args.output)
    job = read_job(args.config_file, args.opts, args.imports, eval_only=True)
    job = job.for_inference()
    if args.format != "torchscript":
        job = job.changed({"device": "cpu"})
    require_weights(job, eval_only=True, resume=False)
    mapper = job.build_test_mapper()
    images = {path: read_sample(path, mapper) for path in args.sample_image}
    image = images[args.sample_image[0]]
    job.read_class_counts()
    model = load_model(job).eval()
    os.makedirs(args.output, exist_ok=True)
    dynamic = not args.fixed_size
    exported = fuse(model) if args.fuse else model
    path = export_file(
        exported, image, args.output, args.format, method=args.export_method, dynamic=dynamic
    )
    print(f"Wrote {path} ({os.path.getsize(path) / 2**20:.1f} MB):")
    print(describe_file(model, image, args.format, mapper.image_format, dynamic=dynamic))
    verification = verify_file(model, path, images, dynamic=dynamic)
    print(verification.table())
    verification.check()
