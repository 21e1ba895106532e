#!/usr/bin/env python3
"""Average the weights of several checkpoints of one model into one that MODEL.WEIGHTS takes.

They are read as data, in every format that MODEL.WEIGHTS takes: nothing that they name is run.
The statistics of batch norms are averaged as the weights are.
"""

import argparse
import os
import sys

import torch

from apa_det.checkpoint import average_checkpoints


def run(args: argparse.Namespace) -> None:
    folder = os.path.dirname(args.output) or "."
    if not args.output.endswith(".pth") or not os.path.isdir(folder):
        raise ValueError(f"--output is {args.output}: name a .pth file, in a folder that exists.")
    result = average_checkpoints(args.inputs, args.weights, averaged=args.ema)
    torch.save(result, args.output)
    print(f"Wrote {args.output}: {len(result['model'])} tensors, of {len(args.inputs)} files.")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("inputs", nargs="+", metavar="IN", help="the checkpoints")
    result.add_argument("--output", required=True, metavar="OUT", help="the .pth to be written")
    result.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="of each checkpoint; they are divided by their sum. Default: all the same",
    )
    result.add_argument(
        "--ema", action="store_true", help="take the moving averages that the files hold"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"{os.path.basename(__file__)}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
