#!/usr/bin/env python3
"""Fit the strength of a score calibration on a part of the training set.

The detector runs once on training pictures, chosen so that rare classes stay in; its boxes are
evaluated under each strength. What is best is printed as overrides for train_net.py --eval-only,
or lazyconfig_train_net.py, and shown in a figure in OUTPUT_DIR/calibration.
"""

import argparse
import os
import sys

import yaml

from apa_det.engine import setup, setup_lazy
from apa_det.engine.jobs.fit_calibration import STRENGTHS, CalibrationFit, calibrate, calibrate_lazy
from apa_det.engine.setup.lazy import box_predictors, dataset_names
from apa_det.modeling import CALIBRATION_REGISTRY


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--config-file", required=True, metavar="FILE", help="yaml or .py config")
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
    args.eval_only, args.resume = True, False
    what = args.method, args.num_images, sorted({0.0, *args.strengths})
    if args.config_file.endswith(".py"):
        cfg = setup_lazy(args)
        fit = calibrate_lazy(cfg, *what)
        folder = show(fit, cfg.train.output_dir)
        names = ",".join(dataset_names(cfg, "train"))
        overrides = [
            f"{key}.calibration={args.method} {key}.calibration_strength={fit.best:g} "
            f"{key}.calibration_datasets=[{names}]"
            for key in box_predictors(cfg)
        ]
    else:
        keys = "MODEL.ROI_BOX_HEAD.CALIBRATION", "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH"
        args.opts = [*args.opts, keys[0], args.method, keys[1], "1.0"]
        cfg = setup(args)
        fit = calibrate(cfg, *what)
        folder = show(fit, cfg.OUTPUT_DIR)
        overrides = [f"{keys[0]} {args.method} {keys[1]} {fit.best:g}"]
        if fit.best:
            head = {"CALIBRATION": args.method, "CALIBRATION_STRENGTH": fit.best}
            with open(os.path.join(folder, f"{args.method}.yaml"), "w") as file:
                yaml.safe_dump({"MODEL": {"ROI_BOX_HEAD": head}}, file)
            print(f"As yaml: {folder}/{args.method}.yaml")
    if fit.best:
        print("As overrides of the command line:", *overrides, sep="\n    ")


def show(fit: CalibrationFit, output_dir: str) -> str:
    """The folder that the figure is in."""
    folder = os.path.join(output_dir, "calibration")
    os.makedirs(folder, exist_ok=True)
    fit.draw(os.path.join(folder, f"{fit.method}.png"))
    print(f"\n{fit.table()}\n\n{fit.advice()}\nFigure: {folder}/{fit.method}.png")
    return folder


def main(argv: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"{os.path.basename(__file__)}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
