#!/usr/bin/env python3
"""Combine several detectors' results into one result file.

The results are files, as tools/evaluate_predictions.py reads them, or those of several checkpoints,
which are run here on the first of DATASETS.TEST; or both.
"""

import argparse
import logging
import os
import sys

from detectron2.data import MetadataCatalog

from apa_det.engine import setup
from apa_det.engine.evaluation import write_predictions
from apa_det.evaluation import GroundTruth, read_results
from apa_det.evaluation.ensembling import ENSEMBLE_METHODS, ensemble, load_ensemble_boxes


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("output", metavar="OUT", help="the result file to be written: a .json")
    result.add_argument("--gt", metavar="JSON", help="ground truth that the result files are of")
    result.add_argument("--results", nargs="+", default=[], metavar="FILE", help="result files")
    result.add_argument(
        "--checkpoints", nargs="+", default=[], metavar="FILE", help="checkpoints to run"
    )
    result.add_argument(
        "--config-file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="yaml config of the checkpoints: one of all, or one of each",
    )
    result.add_argument(
        "--method",
        choices=ENSEMBLE_METHODS,
        default="wbf",
        help="weighted boxes fusion, NMS or linear soft-NMS (default wbf)",
    )
    result.add_argument(
        "--iou",
        type=float,
        default=0.55,
        help="boxes of a class that overlap by more are one object's (default 0.55)",
    )
    result.add_argument(
        "--weights",
        type=_numbers,
        metavar="W,W,...",
        help="of the files, then of the checkpoints (default 1 each)",
    )
    result.add_argument(
        "--min-score",
        type=float,
        default=0.0,
        metavar="S",
        help="detections of no higher score are left out (default 0)",
    )
    result.add_argument(
        "--max-dets",
        type=int,
        default=300,
        metavar="N",
        help="detections to keep of each picture (default 300; -1: all)",
    )
    result.add_argument("--boxes-only", action="store_true", help="leave masks out")
    result.add_argument(
        "--opts",
        default=[],
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="last on the line: changes to the configs",
    )
    return result


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def run(args: argparse.Namespace) -> None:
    folder = os.path.dirname(args.output) or "."
    if not args.output.endswith(".json") or not os.path.isdir(folder):
        raise ValueError(f"OUT is {args.output}: name a .json file, in a folder that exists.")
    number = len(args.results) + len(args.checkpoints)
    if number < 2:
        raise ValueError("Give two or more --results or --checkpoints to combine.")
    if args.weights is not None and len(args.weights) != number:
        raise ValueError(f"--weights gives {len(args.weights)} weights for {number} results.")
    if args.checkpoints and len(args.config_file) not in (1, len(args.checkpoints)):
        raise ValueError("--checkpoints needs one --config-file, or one for each checkpoint.")
    if args.results and not (args.gt or args.checkpoints):
        raise ValueError("--results needs --gt, the ground truth that they are of.")
    load_ensemble_boxes()  # or say so now
    gt, files = args.gt, list(args.results)
    for i, checkpoint in enumerate(args.checkpoints):
        config = args.config_file[i if len(args.config_file) > 1 else 0]
        opts = [*args.opts, "MODEL.WEIGHTS", checkpoint]
        cfg = setup(argparse.Namespace(config_file=config, opts=opts, eval_only=True, resume=False))
        files.append(write_predictions(cfg, os.path.join(cfg.OUTPUT_DIR, "ensemble", str(i + 1))))
        gt = gt or MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file
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
    combined.write(args.output)
    print(f"Wrote {args.output}: {len(combined)} detections. To evaluate it beside the others:")
    print(
        f"    tools/evaluate_predictions.py --gt {gt} --results {' '.join([*files, args.output])}"
    )


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(parser().parse_args(argv))
    except (ImportError, OSError, ValueError) as error:
        print(f"{os.path.basename(__file__)}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
