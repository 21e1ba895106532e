"""Average the weights of several checkpoints of one model.

It reads every format that MODEL.WEIGHTS takes, and runs no code of the files. The statistics of
batch norms are averaged like the weights.
"""

import argparse
import os

from .flags import add_import, command_parser, numbers


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    result.add_argument("inputs", nargs="+", metavar="IN", help="the checkpoints")
    result.add_argument("--output", required=True, metavar="FILE", help="the .pth file to write")
    result.add_argument(
        "--weights",
        type=numbers,
        metavar="W,W,...",
        help="of the checkpoints, divided by their sum (default: equal)",
    )
    result.add_argument(
        "--ema",
        action="store_true",
        help="average the moving averages in the files instead of the weights",
    )
    add_import(result)
    return result


def run(args: argparse.Namespace) -> None:
    import torch

    from apa_det.checkpoint import average_checkpoints
    from apa_det.utils.atomic_files import open_atomic
    from apa_det.utils.writable import require_writable_file

    require_writable_file(args.output, ".pth")
    result = average_checkpoints(args.inputs, args.weights, ema=args.ema)
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    with open_atomic(args.output, "wb") as file:
        torch.save(result, file)
    print(f"Wrote {args.output}: {len(result['model'])} tensors of {len(args.inputs)} files.")
