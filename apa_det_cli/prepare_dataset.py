"""Convert a COCO dataset to LVIS format, check a dataset, or generate one."""

import argparse
import json
import shlex

from .flags import add_count_from, add_import, command_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    commands = result.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    add_import(common)
    thresholds = argparse.ArgumentParser(add_help=False)
    group = thresholds.add_argument_group("categories without a frequency in the file")
    group.add_argument(
        "--rare-max",
        type=int,
        default=10,
        metavar="N",
        help="largest image count of a rare category (default 10)",
    )
    group.add_argument(
        "--common-max",
        type=int,
        default=100,
        metavar="N",
        help="largest image count of a common category (default 100)",
    )

    sub = commands.add_parser(
        "coco-to-lvis", parents=[common, thresholds], help="convert COCO-format annotations"
    )
    sub.add_argument("coco_json", help="COCO-format instance annotations")
    sub.add_argument(
        "--output", required=True, metavar="JSON", help="the LVIS-format file to write"
    )
    add_count_from(sub)
    sub.set_defaults(action=convert)

    sub = commands.add_parser(
        "check",
        parents=[common, thresholds],
        help="count what is in an LVIS-format dataset and list every error in it",
    )
    sub.add_argument("json_file", help="LVIS-format annotations")
    sub.add_argument("image_root", help="folder that file names are relative to")
    sub.set_defaults(action=check)

    sub = commands.add_parser(
        "synthetic", parents=[common], help="generate a small long-tailed dataset"
    )
    sub.add_argument(
        "--output", required=True, metavar="DIR", help="folder of train.json, val.json and images"
    )
    for name, default, what in (
        ("train", 600, "images in train.json"),
        ("val", 100, "images in val.json"),
        ("classes", 16, "classes"),
    ):
        sub.add_argument(
            f"--num-{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"number of {what} (default {default})",
        )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    sub.add_argument(
        "--image-size",
        type=int,
        default=160,
        metavar="PIXELS",
        help="side of the images (default 160)",
    )
    sub.add_argument(
        "--mask-format", choices=("polygon", "rle"), default="polygon", help="default polygon"
    )
    sub.set_defaults(action=generate)
    return result


def run(args: argparse.Namespace) -> int | None:
    return args.action(args)


def convert(args: argparse.Namespace) -> None:
    from apa_det.data import coco_to_lvis, read_coco_json
    from apa_det.utils.json_files import write_json
    from apa_det.utils.writable import require_writable_file

    require_writable_file(args.output, ".json")
    coco = read_coco_json(args.coco_json)
    count_from = read_coco_json(args.count_from) if args.count_from else None
    lvis = coco_to_lvis(
        coco, count_from=count_from, rare_max=args.rare_max, common_max=args.common_max
    )
    write_json(lvis, args.output)
    summary = lvis["info"]["coco_to_lvis"]
    print(
        f"Wrote {args.output}: {summary['images']:,} images, {summary['annotations']:,} "
        f"annotations. Dropped {summary['crowds']:,} crowd annotations and "
        f"{summary['unusable']:,} without a usable box or mask; their categories are marked as not "
        "exhaustively annotated in those images."
    )


def check(args: argparse.Namespace) -> int:
    from apa_det.data import check_dataset

    report = check_dataset(
        args.json_file, args.image_root, rare_max=args.rare_max, common_max=args.common_max
    )
    print(report)
    return 1 if report.problems else 0


def generate(args: argparse.Namespace) -> None:
    from apa_det.data import generate_dataset
    from apa_det.utils.writable import require_writable_folder

    require_writable_folder(args.output)
    files = generate_dataset(
        args.output,
        num_train=args.num_train,
        num_val=args.num_val,
        num_classes=args.num_classes,
        seed=args.seed,
        image_size=args.image_size,
        mask_format=args.mask_format,
    )
    entries = [[f"synthetic_{split}", path, args.output] for split, path in files.items()]
    print(f"To train on it: DATASETS.LVIS_FORMAT {shlex.quote(json.dumps(entries))}")
