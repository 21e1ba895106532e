"""Convert, split, check, generate or advise on a dataset, or write its config."""

import argparse
import json
import os
import shlex

from . import advise_dataset
from .dataset_config import (
    add_image_roots,
    add_recipe,
    require_config_output,
    write_dataset_config,
)
from .flags import add_count_from, add_import, command_parser, positive_int


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

    recipe = argparse.ArgumentParser(add_help=False)
    add_recipe(recipe.add_argument_group("the config"))
    written = argparse.ArgumentParser(add_help=False)
    written.add_argument(
        "--write-config", metavar="YAML", help="also write a config that trains on the dataset"
    )

    sub = commands.add_parser(
        "coco-to-lvis",
        parents=[common, thresholds, written, recipe],
        help="convert COCO-format annotations",
    )
    sub.add_argument("coco_json", help="COCO-format instance annotations")
    sub.add_argument(
        "--output", required=True, metavar="JSON", help="the LVIS-format file to write"
    )
    sub.add_argument(
        "--val",
        metavar="JSON",
        help="also convert this validation set, to its own name in the folder of --output, with "
        "the image counts of coco_json",
    )
    add_count_from(sub)
    add_image_roots(sub)
    sub.set_defaults(action=convert)

    for name, metavar, what in (
        ("yolo", "data_yaml", "YOLO dataset of boxes or polygons: its data.yaml"),
        ("voc", "folder", "Pascal VOC dataset: its folder, with Annotations and JPEGImages"),
        ("open-images", "folder", "subset of Open Images: the folder of its CSV files"),
    ):
        sub = commands.add_parser(
            f"{name}-to-lvis",
            parents=[common, thresholds, written, recipe],
            help=f"convert a {what.partition(':')[0]}",
        )
        sub.add_argument("source", metavar=metavar, help=what)
        sub.add_argument(
            "--output", required=True, metavar="DIR", help="folder of train.json, val.json, ..."
        )
        if name == "open-images":
            sub.add_argument(
                "--image-root",
                metavar="DIR",
                help="folder of the image folders train, validation and test (default: folder)",
            )
        add_count_from(sub)
        sub.set_defaults(action=convert_folder, reader=name)

    sub = commands.add_parser(
        "split", parents=[common, thresholds], help="split a dataset, with all classes in each part"
    )
    sub.add_argument("json_file", help="LVIS-format annotations")
    sub.add_argument("--output", required=True, metavar="DIR", help="folder of the parts")
    how = sub.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--val-share",
        type=float,
        metavar="X",
        help="write train.json and val.json; fraction of the images in val.json, e.g. 0.2",
    )
    how.add_argument(
        "--parts", type=positive_int, metavar="N", help="write part_1.json to part_N.json"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    sub.set_defaults(action=split)

    sub = commands.add_parser(
        "write-config",
        parents=[common, recipe],
        help="write a config that trains on a dataset in LVIS format",
    )
    sub.add_argument("--train", required=True, metavar="JSON", help="training set (LVIS format)")
    sub.add_argument("--val", metavar="JSON", help="validation set (LVIS format)")
    sub.add_argument("--output", required=True, metavar="YAML", help="the config to write")
    add_image_roots(sub, required=True)
    sub.set_defaults(action=write_config)

    advise_dataset.add_command(commands, [common, thresholds, written, recipe])

    sub = commands.add_parser(
        "check",
        parents=[common, thresholds],
        help="count what is in an LVIS-format dataset and list every error in it",
    )
    sub.add_argument("json_file", help="LVIS-format annotations")
    sub.add_argument("image_root", help="folder that file names are relative to")
    sub.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="accept image files outside image_root, as DATASETS.ALLOW_OUTSIDE_ROOT does",
    )
    sub.add_argument(
        "--json", metavar="FILE", help="write the counts and all errors to this .json file"
    )
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
    from apa_det.data.validation import ID_LISTS
    from apa_det.errors import UserError
    from apa_det.utils.writable import require_writable_file

    require_writable_file(args.output, ".json")
    inputs = {args.output: args.coco_json}
    if args.val:
        val_output = os.path.join(os.path.dirname(args.output), os.path.basename(args.val))
        if os.path.realpath(val_output) in map(os.path.realpath, (args.output, args.val)):
            raise UserError(f"--val would be written to {val_output}: choose another --output.")
        require_writable_file(val_output, ".json", "--val")
        inputs[val_output] = args.val
    require_config_output(args, args.image_root)
    count_from = read_coco_json(args.count_from) if args.count_from else None
    converted = {}
    for output, path in inputs.items():
        coco = read_coco_json(path)
        if any(key in image for image in coco["images"] for key in ID_LISTS):
            raise UserError(
                f"{path} is in LVIS format already (it has {ID_LISTS[0]}): use it as it is, "
                "with prepare-dataset write-config."
            )
        converted[output] = coco_to_lvis(
            coco, count_from=count_from, rare_max=args.rare_max, common_max=args.common_max
        )
        count_from = count_from or coco
    _write(converted)
    if args.write_config:
        write_dataset_config(args, args.write_config, list(converted.items()))


def convert_folder(args: argparse.Namespace) -> None:
    from apa_det.data import read_coco_json
    from apa_det.data.readers import read_open_images, read_pascal_voc, read_yolo
    from apa_det.errors import UserError
    from apa_det.utils.writable import require_writable_folder

    require_writable_folder(args.output)
    require_config_output(args, ".")
    count_from = read_coco_json(args.count_from) if args.count_from else None
    if args.reader == "yolo":
        source = read_yolo(args.source)
    elif args.reader == "voc":
        source = read_pascal_voc(args.source, count_from and count_from["categories"])
    else:
        source = read_open_images(args.source, args.image_root)
    lvis = source.to_lvis(count_from=count_from, rare_max=args.rare_max, common_max=args.common_max)
    paths = {split: os.path.join(args.output, f"{split}.json") for split in lvis}
    _write({paths[split]: content for split, content in lvis.items()})
    if args.write_config:
        if "train" not in lvis:
            raise UserError(f"--write-config needs a training set, which {args.source} lacks.")
        args.image_root = args.val_image_root = source.image_root
        sets = [(paths[split], lvis[split]) for split in ("train", "val") if split in lvis]
        write_dataset_config(args, args.write_config, sets)


def _write(converted: dict[str, dict]) -> None:
    from apa_det.utils.json_files import write_json

    for output, lvis in converted.items():
        write_json(lvis, output)
        summary = lvis["info"]["coco_to_lvis"]
        keys = ("images", "annotations", "crowds", "unusable")
        images, annotations, crowds, unusable = (summary[key] for key in keys)
        print(f"Wrote {output}: {images:,} images, {annotations:,} annotations.")
        if crowds or unusable:
            print(
                f"  Dropped: {crowds:,} crowds, {unusable:,} without a usable box or mask. Their "
                "categories are marked as not exhaustively annotated in those images."
            )
        if unusable > annotations:
            print("  Most annotations are dropped: to train on boxes alone, remove all masks.")


def split(args: argparse.Namespace) -> None:
    from apa_det.data import read_lvis_json
    from apa_det.data.split import split_dataset
    from apa_det.errors import UserError
    from apa_det.utils.json_files import write_json
    from apa_det.utils.writable import require_writable_folder

    require_writable_folder(args.output)
    if args.parts:
        if args.parts < 2:
            raise UserError(f"--parts must be >= 2, got {args.parts}.")
        names = [f"part_{i}" for i in range(1, args.parts + 1)]
        shares = [1 / args.parts] * args.parts
    else:
        if not 0 < args.val_share < 1:
            raise UserError(f"--val-share must be between 0 and 1, got {args.val_share:g}.")
        names, shares = ["train", "val"], [1 - args.val_share, args.val_share]
    outputs = [os.path.join(args.output, f"{name}.json") for name in names]
    if os.path.realpath(args.json_file) in map(os.path.realpath, outputs):
        raise UserError(f"{args.json_file} would be overwritten: choose another --output.")
    parts = split_dataset(
        read_lvis_json(args.json_file),
        shares,
        count_from_first=not args.parts,
        seed=args.seed,
        rare_max=args.rare_max,
        common_max=args.common_max,
    )
    for path, part in zip(outputs, parts, strict=True):
        write_json(part, path)
        classes = len({annotation["category_id"] for annotation in part["annotations"]})
        print(
            f"Wrote {path}: {len(part['images']):,} images, {len(part['annotations']):,} "
            f"annotations of {classes:,} of {len(part['categories']):,} classes."
        )


def write_config(args: argparse.Namespace) -> None:
    from apa_det.data import read_lvis_json
    from apa_det.utils.writable import require_writable_file

    require_writable_file(args.output, ".yaml")
    paths = [args.train] + [args.val] * bool(args.val)
    write_dataset_config(args, args.output, [(path, read_lvis_json(path)) for path in paths])


def check(args: argparse.Namespace) -> int:
    from apa_det.data import check_dataset
    from apa_det.utils.json_files import write_json
    from apa_det.utils.writable import require_writable_file

    if args.json:
        require_writable_file(args.json, ".json", "--json")
    report = check_dataset(
        args.json_file,
        args.image_root,
        rare_max=args.rare_max,
        common_max=args.common_max,
        allow_outside_root=args.allow_outside_root,
    )
    print(report)
    if args.json:
        write_json(report.summary(), args.json)
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
