"""Combine the results of several detectors into one result file.

They are result files, as evaluate-predictions reads them, or those of checkpoints, which are run on
the first test set of their config; or both.
"""

import argparse
import os

from .flags import (
    add_config_file,
    add_ground_truth,
    add_max_dets,
    add_overrides,
    add_results,
    command_parser,
    numbers,
)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    result.add_argument("--output", required=True, metavar="FILE", help="the .json file to write")
    add_ground_truth(result)
    add_results(result, default=[])
    result.add_argument(
        "--checkpoints", nargs="+", default=[], metavar="FILE", help="checkpoints to run"
    )
    add_config_file(result, " of all checkpoints, or one for each", nargs="+", default=[])
    result.add_argument(
        "--method",
        choices=("wbf", "nms", "soft-nms"),
        default="wbf",
        help="weighted boxes fusion, NMS or linear soft-NMS (default wbf)",
    )
    result.add_argument(
        "--iou",
        type=float,
        default=0.55,
        help="boxes of a class that overlap by more are one object (default 0.55)",
    )
    result.add_argument(
        "--weights",
        type=numbers,
        metavar="W,W,...",
        help="of the result files, then of the checkpoints (default: equal)",
    )
    result.add_argument(
        "--min-score",
        type=float,
        default=0.0,
        metavar="S",
        help="drop detections with this score or less (default 0)",
    )
    add_max_dets(result)
    result.add_argument("--boxes-only", action="store_true", help="drop the masks")
    add_overrides(result)
    return result


def run(args: argparse.Namespace) -> None:
    from apa_det.evaluation import GroundTruth, read_results
    from apa_det.evaluation.ensembling import ensemble, load_ensemble_boxes

    check(args)
    load_ensemble_boxes()  # raises before the checkpoints are run
    files, gt = predict(args)
    truth = GroundTruth.from_file(gt)
    iou_types = ["bbox"] if args.boxes_only else None
    combined = ensemble(
        truth,
        [read_results(path, truth, iou_types) for path in files],
        method=args.method,
        iou=args.iou,
        weights=args.weights,
        min_score=args.min_score,
        max_dets=None if args.max_dets < 0 else args.max_dets,
        names=files,
    )
    if not len(truth.annotation_ids):
        combined.for_server().write(args.output)
        print(f"Wrote {args.output}: {len(combined)} detections, for the evaluation server.")
        return
    combined.write(args.output)
    print(f"Wrote {args.output}: {len(combined)} detections. To evaluate it beside the others:")
    print(f"    apa-det evaluate-predictions --gt {gt} --results {' '.join(files)} {args.output}")


def check(args: argparse.Namespace) -> None:
    from apa_det.errors import UserError
    from apa_det.utils.writable import require_writable_file

    require_writable_file(args.output, ".json")
    number = len(args.results) + len(args.checkpoints)
    if number < 2:
        raise UserError("Give two or more --results or --checkpoints to combine.")
    if args.weights is not None and len(args.weights) != number:
        raise UserError(f"--weights has {len(args.weights)} weights for {number} results.")
    if args.checkpoints and len(args.config_file) not in (1, len(args.checkpoints)):
        raise UserError("--checkpoints needs one --config-file, or one for each checkpoint.")
    if args.results and not (args.gt or args.checkpoints):
        raise UserError("--results needs --gt, their ground truth.")


def predict(args: argparse.Namespace) -> tuple[list[str], str]:
    """Run the checkpoints; return the result files of all detectors, and the ground truth."""
    from detectron2.data import MetadataCatalog

    from apa_det.engine import overrides, setup_job
    from apa_det.engine.jobs import write_predictions

    files, gt = list(args.results), args.gt
    for i, checkpoint in enumerate(args.checkpoints):
        config = args.config_file[i if len(args.config_file) > 1 else 0]
        opts = [*args.opts, *overrides(config, {"weights": checkpoint})]
        settings = {"config_file": config, "opts": opts, "imports": args.imports}
        job = setup_job(argparse.Namespace(**settings, eval_only=True, resume=False))
        folder = os.path.join(job.output_dir, "ensemble", str(i + 1))
        files.append(write_predictions(job, folder))
        gt = gt or MetadataCatalog.get(job.test_datasets[0]).json_file
    return files, gt
