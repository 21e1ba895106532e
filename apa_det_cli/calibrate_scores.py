"""Fit the strength of a score calibration on a part of the training set.

The detector runs once on images of the training set, and its boxes are evaluated with each
strength. Prints the best one as overrides of the config. A figure, and of a yaml config also the
overrides as yaml, go into OUTPUT_DIR/calibration.

With --results, calibrates a result file of any detector instead, by the strength that --strengths
gives. The scores of its classes must not depend on each other, as those of a softmax do.
"""

import argparse
import os

from .flags import (
    add_config_file,
    add_count_from,
    add_ground_truth,
    add_num_images,
    add_overrides,
    add_results,
    command_parser,
    numbers,
)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    add_config_file(result)
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
    add_results(result, nargs=None)
    result.add_argument("--output", metavar="FILE", help="the .json file to write, with --results")
    add_ground_truth(result)
    add_count_from(result)
    add_overrides(result, trailing=True)
    return result


def strengths(text: str) -> tuple[float, ...]:
    values = numbers(text)
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"must be >= 0, got {text}")
    return tuple(sorted({0.0, *values}))


def run(args: argparse.Namespace) -> None:
    from apa_det.errors import UserError

    if args.results:
        return calibrate_file(args)
    if not args.config_file:
        raise UserError("Give --config-file to fit a strength, or --results to calibrate a file.")
    if args.output or args.gt or args.count_from:
        raise UserError("--output, --gt and --count-from are for --results: remove them.")
    fit(args)


def fit(args: argparse.Namespace) -> None:
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


def calibrate_file(args: argparse.Namespace) -> None:
    from apa_det.engine.jobs import calibrate_results
    from apa_det.errors import UserError
    from apa_det.utils.writable import require_writable_file

    if args.config_file or args.opts:
        raise UserError("--results takes no config: remove --config-file and the overrides.")
    needed = {"--output": args.output, "--gt": args.gt, "--count-from": args.count_from}
    missing = [flag for flag, value in needed.items() if not value]
    if missing:
        raise UserError(f"--results needs {' and '.join(missing)}.")
    if len(args.strengths) != 2:  # 0 is always one of them
        raise UserError("--results needs one strength above 0, e.g. --strengths 1.")
    require_writable_file(args.output, ".json")
    detections = calibrate_results(
        args.results, args.gt, args.count_from, args.method, args.strengths[1]
    )
    detections.write(args.output)
    print(f"Wrote {args.output}: {len(detections)} detections. To evaluate it beside the other:")
    print(f"    apa-det evaluate-predictions --gt {args.gt} --results {args.results} {args.output}")
