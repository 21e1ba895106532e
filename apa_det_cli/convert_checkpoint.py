"""Convert a checkpoint to one that MODEL.WEIGHTS takes.

Prints what became of each tensor. The file may hold a published detector or ImageNet model, a
torchvision ResNet, or a model of detectron2, as .pth, .pkl or .safetensors. No code in it is run.
"""

import argparse
import os

from .flags import add_config_file, add_overrides, command_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    result.add_argument("input", metavar="IN", help="the checkpoint")
    result.add_argument("--output", required=True, metavar="FILE", help="the .pth file to write")
    add_config_file(
        result, " of the model: checks that all its parameters are there, in their shape"
    )
    result.add_argument(
        "--ema", action="store_true", help="convert the moving averages instead of the weights"
    )
    result.add_argument(
        "--allow-partial",
        action="store_true",
        help="write what fits even if tensors are missing, unexpected or of another shape",
    )
    result.add_argument(
        "--reverse", action="store_true", help="write the names of the published detector"
    )
    add_overrides(result)
    return result


def run(args: argparse.Namespace) -> None:
    import torch

    from apa_det.checkpoint import convert, load_checkpoint, reverse, stored_class_names
    from apa_det.engine import read_job
    from apa_det.errors import UserError
    from apa_det.utils.writable import require_writable_file

    require_writable_file(args.output, ".pth")
    checkpoint = load_checkpoint(args.input)
    model = None
    if args.config_file:
        model = read_job(args.config_file, args.opts, args.imports).build_model()
    try:
        class_names = stored_class_names(checkpoint)
        conversion = convert(checkpoint, model, ema=args.ema)
        result = reverse(conversion.state) if args.reverse else conversion
        print(result.table())
        if not args.allow_partial:
            conversion.check()
            result.check()
    except UserError as error:
        raise UserError(f"{args.input}: {error}") from error
    if model is None:
        print("Give --config-file to check the shapes and that no parameter is missing.")
    names = conversion.unfilled()
    if names:
        print("Parameters not in the file keep their initialization:", *names, sep="\n")
    if args.reverse:
        content = {"state_dict": result.state}
    else:
        content = {"model": result.state, "__author__": f"apa_det, from a {result.layout.value}"}
        if class_names:
            content["class_names"] = class_names
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    torch.save(content, args.output)
    print(f"Wrote {args.output}: {len(result.state)} tensors.")
