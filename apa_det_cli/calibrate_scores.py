"""Fit the strength of a score calibration on a part of the training set.

The detector runs once on images of the training set, and its boxes are evaluated with each
strength. Prints the best one as overrides of the config. A figure, and of a yaml config also the
overrides as yaml, go into OUTPUT_DIR/calibration.
"""

import argparse
import os

from .flags import add_config_file, add_num_images, add_overrides, command_parser, numbers


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    add_config_file(result, required=True)
    result.add_argument(
        "--method",
        required=True,
        metavar="NAME",
        help="a calibration as in MODEL.ROI_BOX_HEAD.CALIBRATION, e.g. NorCal",
    )
    add_num_images(result, 500, "training")
    result.add_argument(
        "--strengths",
        type=strengths,
        default=tuple(i / 10 for i in range(11)),
        metavar="S,S,...",
        help="strengths to evaluate, beside 0, which is no calibration (default 0,0.1,...,1)",
    )
    add_overrides(result, trailing=True)
    return result


def strengths(text: str) -> tuple[float, ...]:
    values = numbers(text)
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"must be >= 0, got {text}")
    return tuple(sorted({0.0, *values}))


def run(args: argparse.Namespace) -> None:
    import yaml

    from apa_det.engine import YamlJob, setup_job
    from apa_det.engine.jobs import fit_calibration
    from apa_det.utils.atomic_files import open_atomic

    args.eval_only, args.resume = True, False
    job = setup_job(args)
    fit = fit_calibration(job, args.method, args.num_images, args.strengths)
    folder = os.path.join(job.output_dir, "calibration")
    os.makedirs(folder, exist_ok=True)
    figure = os.path.join(folder, f"{fit.method}.png")
    fit.draw(figure)
    print(f"\n{fit.table()}\n\n{fit.advice()}\nFigure: {figure}")
    if not fit.best:
        return
    lines = job.calibration_overrides(fit.method, fit.best)
    print("As overrides:", *lines, sep="\n    ")
    if isinstance(job, YamlJob):
        path = os.path.join(folder, f"{fit.method}.yaml")
        head = {"CALIBRATION": fit.method, "CALIBRATION_STRENGTH": fit.best}
        with open_atomic(path) as file:
            yaml.safe_dump({"MODEL": {"ROI_BOX_HEAD": head}}, file)
        print(f"As yaml: {path}")
