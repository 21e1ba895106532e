#!/usr/bin/env python3
"""Make datasets in LVIS format: convert one of COCO's, check one, or generate one."""

import argparse
import json
import os
import shlex
import sys

from apa_det.data import check_dataset, coco_to_lvis, generate_dataset, read_coco_json
from apa_det.data.frequency import COMMON_MAX, RARE_MAX
from apa_det.utils.json_files import write_json


def convert(args: argparse.Namespace) -> int:
    coco = read_coco_json(args.coco_json)
    count_from = read_coco_json(args.counts_from) if args.counts_from else None
    lvis = coco_to_lvis(
        coco, count_from=count_from, rare_max=args.rare_max, common_max=args.common_max
    )
    write_json(lvis, args.lvis_json)
    summary = lvis["info"]["coco_to_lvis"]
    print(
        f"Wrote {args.lvis_json}: {summary['pictures']:,} pictures, "
        f"{summary['annotations']:,} annotations. Dropped {summary['crowds']:,} crowds and "
        f"{summary['unusable']:,} annotations without a usable box or mask; in those pictures "
        "their categories are marked not exhaustively annotated."
    )
    return 0


def check(args: argparse.Namespace) -> int:
    report = check_dataset(
        args.json_file, args.image_root, rare_max=args.rare_max, common_max=args.common_max
    )
    print(report)
    return 1 if report.problems else 0


def synthetic(args: argparse.Namespace) -> int:
    files = generate_dataset(
        args.output_dir,
        num_train=args.num_train,
        num_val=args.num_val,
        num_classes=args.num_classes,
        seed=args.seed,
        image_size=args.image_size,
        mask_format=args.mask_format,
    )
    entries = [[f"synthetic_{split}", path, args.output_dir] for split, path in files.items()]
    print(f"To train on it: DATASETS.LVIS_FORMAT {shlex.quote(json.dumps(entries))}")
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    commands = result.add_subparsers(required=True, metavar="command")
    thresholds = argparse.ArgumentParser(add_help=False)
    group = thresholds.add_argument_group("where the file gives no frequency")
    group.add_argument(
        "--rare-max", type=int, default=RARE_MAX, help="largest image count of a rare category"
    )
    group.add_argument(
        "--common-max", type=int, default=COMMON_MAX, help="the same for a common category"
    )

    sub = commands.add_parser(
        "coco-to-lvis", parents=[thresholds], help="convert COCO-format instance annotations"
    )
    sub.add_argument("coco_json", help="COCO-format instances file to read")
    sub.add_argument("lvis_json", help="LVIS-format file to write")
    sub.add_argument(
        "--counts-from",
        metavar="TRAIN_JSON",
        help="take image counts and frequencies from this training set (COCO or LVIS format)",
    )
    sub.set_defaults(run=convert)

    sub = commands.add_parser(
        "check",
        parents=[thresholds],
        help="count what is in an LVIS-format dataset and list all that is wrong with it",
    )
    sub.add_argument("json_file", help="LVIS-format annotations")
    sub.add_argument("image_root", help="folder that file names are relative to")
    sub.set_defaults(run=check)

    sub = commands.add_parser("synthetic", help="generate a small long-tailed dataset")
    sub.add_argument("output_dir", help="folder to write train.json, val.json and pictures to")
    sub.add_argument("--num-train", type=int, default=600, help="pictures in train")
    sub.add_argument("--num-val", type=int, default=100, help="pictures in val")
    sub.add_argument("--num-classes", type=int, default=16)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--image-size", type=int, default=160, help="side in pixels")
    sub.add_argument("--mask-format", choices=["polygon", "rle"], default="polygon")
    sub.set_defaults(run=synthetic)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
