#!/usr/bin/env python3
"""Evaluate any detector's result files by LVIS's rules, side by side.

Result files are LVIS's or COCO's result JSON, gzip of it, or detectron2's
instances_predictions.pth; the ground truth is in LVIS or COCO format.
"""

import argparse
import logging
import os
import sys

from apa_det.evaluation import FrequencyGroups, compare, write_report
from apa_det.evaluation.engines import ENGINES, IOU_TYPES
from apa_det.utils.json_files import write_json


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--gt", required=True, metavar="JSON", help="ground truth")
    result.add_argument("--results", required=True, nargs="+", metavar="FILE", help="result files")
    result.add_argument(
        "--iou-type",
        nargs="+",
        choices=IOU_TYPES,
        help="default: bbox, and segm where there are masks",
    )
    result.add_argument(
        "--max-dets",
        type=int,
        default=300,
        metavar="N",
        help="detections that count for each picture (default 300; -1: all)",
    )
    result.add_argument(
        "--engine", choices=ENGINES, default="fast", help="lvis is lvis-api (default fast)"
    )
    result.add_argument(
        "--groups",
        metavar="GROUPS",
        help="frequency groups by their largest image_count, such as r:10,c:100,f, or a JSON file "
        "{category: group} (default: the frequency that the ground truth gives)",
    )
    result.add_argument(
        "--counts-from", metavar="TRAIN_JSON", help="take image counts from this training set"
    )
    result.add_argument(
        "--ap-fixed",
        action="store_true",
        help="also AP of 10,000 detections a category, however many a picture",
    )
    result.add_argument(
        "--ap-pool", action="store_true", help="also AP of all categories ranked together"
    )
    result.add_argument("--json", metavar="OUT", help="write all metrics to this file")
    result.add_argument("--report", metavar="DIR", help="write a report into this folder")
    result.add_argument(
        "--image-root", metavar="DIR", help="show the worst misses, with the pictures from here"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.image_root and not args.report:
        parser().error("--image-root is for the report: give --report too")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        comparison = compare(
            args.gt,
            args.results,
            args.iou_type,
            groups=FrequencyGroups.parse(args.groups) if args.groups else None,
            count_from=args.counts_from,
            engine=args.engine,
            max_dets=None if args.max_dets < 0 else args.max_dets,
            fixed=args.ap_fixed,
            pooled=args.ap_pool,
            details=args.report is not None,
            image_root=args.image_root,
        )
        for iou_type in comparison.iou_types:
            print(f"\n{comparison.table(iou_type)}")
        print(f"\n{comparison.describe()}")
        if args.json:
            write_json(comparison.summary(), args.json)
        if args.report:
            print(f"Report: {write_report(comparison, args.report)}")
    except (ImportError, OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
