"""Evaluate result files of any detector by LVIS's metrics, side by side.

Result files are LVIS's or COCO's result JSON, or detectron2's instances_predictions.pth. The ground
truth is in LVIS or COCO format. JSON files may be gzip or zip archives.
"""

import argparse

from .flags import (
    add_count_from,
    add_ground_truth,
    add_import,
    add_max_dets,
    add_results,
    command_parser,
)


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    add_ground_truth(result, required=True)
    add_results(result, required=True)
    result.add_argument(
        "--iou-type",
        nargs="+",
        choices=("bbox", "segm", "boundary"),
        help="default: bbox, and segm if there are masks",
    )
    result.add_argument(
        "--image-ids",
        metavar="FILE",
        help="evaluate only these images and leave out detections on others: a list of image ids "
        "(text or JSON) or an annotation file, e.g. that of LVIS minival",
    )
    add_max_dets(result)
    result.add_argument(
        "--engine",
        choices=("fast", "lvis"),
        default="fast",
        help="ultrafast-pycocotools or lvis-api (default fast)",
    )
    result.add_argument(
        "--groups",
        metavar="GROUPS",
        help="frequency groups by their largest image count, e.g. r:10,c:100,f, or a JSON file "
        "{category: group} (default: the frequencies of the ground truth)",
    )
    add_count_from(result)
    result.add_argument(
        "--ap-fixed",
        action="store_true",
        help="also AP-fixed: the best 10,000 detections of each category, without a limit per "
        "image",
    )
    result.add_argument(
        "--ap-pool",
        action="store_true",
        help="also AP-pool: the detections of all categories ranked together, the best 10,000 of "
        "each, without a limit per image",
    )
    result.add_argument("--json", metavar="FILE", help="write all metrics to this .json file")
    result.add_argument("--report", metavar="DIR", help="write a report into this folder")
    result.add_argument(
        "--image-root",
        metavar="DIR",
        help="show misses, confusions and false positives on the images of this folder",
    )
    add_import(result)
    return result


def run(args: argparse.Namespace) -> None:
    from apa_det.errors import UserError
    from apa_det.evaluation import FrequencyGroups, compare, write_report
    from apa_det.utils.json_files import write_json
    from apa_det.utils.writable import require_writable_file, require_writable_folder

    if args.image_root and not args.report:
        raise UserError("--image-root is for the report: give --report too.")
    if args.json:
        require_writable_file(args.json, ".json", "--json")
    if args.report:
        require_writable_folder(args.report, "--report")
    comparison = compare(
        args.gt,
        args.results,
        args.iou_type,
        groups=FrequencyGroups.parse(args.groups) if args.groups else None,
        count_from=args.count_from,
        engine=args.engine,
        max_dets=None if args.max_dets < 0 else args.max_dets,
        fixed=args.ap_fixed,
        pooled=args.ap_pool,
        details=args.report is not None,
        image_root=args.image_root,
        image_ids=args.image_ids,
    )
    print(f"\n{comparison.text()}")
    if args.json:
        write_json(comparison.summary(), args.json)
    if args.report:
        print(f"Report: {write_report(comparison, args.report)}")
