"""Fit the strength of a score calibration, or choose score thresholds.

With --method, the detector runs once on images of the training set, and its boxes are evaluated
with each strength. Prints the best one as overrides of the config. A figure, and of a yaml config
also the overrides as yaml, go into OUTPUT_DIR/calibration.

With --thresholds, chooses instead the score thresholds with the highest F1 at IoU 0.5, on images of
the test set. Prints them as overrides, and writes the config with them to OUTPUT_DIR/calibration.

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

STRENGTHS = tuple(i / 10 for i in range(11))


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    add_config_file(result)
    result.add_argument(
        "--method",
        metavar="NAME",
        help="a calibration as in MODEL.ROI_BOX_HEAD.CALIBRATION, e.g. NorCal",
    )
    result.add_argument(
        "--thresholds",
        choices=("group", "class"),
        help="choose score thresholds (TEST.SCORE_THRESH_PER_GROUP) of frequency groups or classes",
    )
    add_num_images(result, 500, "training (with --thresholds: test)")
    result.add_argument(
        "--strengths",
        type=strengths,
        default=STRENGTHS,
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

    if args.thresholds and (args.method or args.strengths != STRENGTHS or args.results):
        raise UserError("--thresholds needs no --method, --strengths and --results: remove them.")
    if not args.thresholds and not args.method:
        raise UserError("Give --method to fit a strength, or --thresholds to choose thresholds.")
    if args.results:
        return calibrate_file(args)
    if not args.config_file:
        raise UserError("Give --config-file to fit a strength, or --results to calibrate a file.")
    if args.output or args.gt or args.count_from:
        raise UserError("--output, --gt and --count-from are for --results: remove them.")
    choose_thresholds(args) if args.thresholds else fit(args)


def choose_thresholds(args: argparse.Namespace) -> None:
    from apa_det.engine import setup_job
    from apa_det.engine.jobs import fit_thresholds

    args.eval_only, args.resume = True, False
    job = setup_job(args)
    fit = fit_thresholds(job, args.thresholds, args.num_images)
    folder = os.path.join(job.output_dir, "calibration")
    os.makedirs(folder, exist_ok=True)
    text = fit.text()
    if args.thresholds == "class":
        text = os.path.abspath(os.path.join(folder, "thresholds.json"))
        fit.write(text)
    kind = "masks" if fit.iou_type == "segm" else "boxes"
    print(f"\nThresholds with the highest F1 (%) of {kind} at IoU 0.5:\n\n{fit.table()}")
    print("As overrides:", *job.score_threshold_overrides(text), sep="\n    ")
    job.with_score_thresholds(text).save_config(folder)
    print(f"As a config: {os.path.join(folder, 'config.yaml')}")


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
        key, _, strength_key, _ = lines[0].split()
        (_, node, name), (_, _, strength_name) = key.split("."), strength_key.split(".")
        values = {name: fit.method, strength_name: fit.best}
        with open_atomic(path) as file:
            yaml.safe_dump({"MODEL": {node: values}}, file)
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
