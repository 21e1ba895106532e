#!/usr/bin/env python3
"""Fit the strength of a score calibration on a part of the training set.

The detector runs once on training pictures, chosen so that rare classes stay in; its boxes are
evaluated under each strength. What is best is printed as overrides for train_net.py --eval-only,
and written as a yaml beside a figure into OUTPUT_DIR/calibration.
"""

import argparse
import os
import sys

import yaml

from apa_det.engine import setup
from apa_det.engine.calibration import STRENGTHS, calibrate
from apa_det.modeling import CALIBRATION_REGISTRY


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--config-file", required=True, metavar="FILE", help="yaml config")
    result.add_argument(
        "--method",
        required=True,
        choices=sorted(name for name, _ in CALIBRATION_REGISTRY),
    )
    result.add_argument(
        "--num-images", type=int, default=500, metavar="N", help="training pictures (default 500)"
    )
    result.add_argument(
        "--strengths",
        type=_numbers,
        default=STRENGTHS,
        metavar="S,S,...",
        help="what to try (default 0,0.1,...,1); 0, the detector as it is, is always among it",
    )
    result.add_argument(
        "opts",
        default=[],
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="last on the line: changes to the config, MODEL.WEIGHTS among them",
    )
    return result


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def run(args: argparse.Namespace) -> None:
    if args.num_images < 1 or min(args.strengths) < 0:
        raise ValueError("--num-images is at least 1, and --strengths are at least 0.")
    keys = "MODEL.ROI_BOX_HEAD.CALIBRATION", "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH"
    opts = [*args.opts, keys[0], args.method, keys[1], "1.0"]
    cfg = setup(argparse.Namespace(**{**vars(args), "opts": opts}, eval_only=True, resume=False))
    fit = calibrate(cfg, args.method, args.num_images, sorted({0.0, *args.strengths}))
    folder = os.path.join(cfg.OUTPUT_DIR, "calibration")
    os.makedirs(folder, exist_ok=True)
    fit.draw(os.path.join(folder, f"{args.method}.png"))
    print(f"\n{fit.table()}\n\n{fit.advice()}")
    print(f"Figure: {folder}/{args.method}.png")
    if fit.best:
        head = {"CALIBRATION": args.method, "CALIBRATION_STRENGTH": fit.best}
        with open(os.path.join(folder, f"{args.method}.yaml"), "w") as file:
            yaml.safe_dump({"MODEL": {"ROI_BOX_HEAD": head}}, file)
        print(
            f"As yaml: {folder}/{args.method}.yaml\nAs overrides of tools/train_net.py --eval-only:"
        )
        print(f"    {keys[0]} {args.method} {keys[1]} {fit.best:g}")


def main(argv: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"{os.path.basename(__file__)}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
