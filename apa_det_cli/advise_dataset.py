"""Advise on how to train on a dataset: ``prepare-dataset advise``."""

import argparse
import os

from .dataset_config import add_image_roots, require_config_output, write_dataset_config


def add_command(commands: argparse._SubParsersAction, parents: list) -> None:
    """Add the command to those of ``prepare-dataset``."""
    sub = commands.add_parser(
        "advise",
        parents=parents,
        help="show what is in a training set, what each sampler would show of it, and which recipe "
        "suits it",
    )
    sub.add_argument("json_file", help="training set, in LVIS or COCO format")
    sub.add_argument(
        "--output",
        default="advice",
        metavar="DIR",
        help="folder of the page advice.html and its picture dataset.png (default advice)",
    )
    sub.add_argument("--val", metavar="JSON", help="validation set, for the config")
    add_image_roots(sub)
    sub.set_defaults(action=advise)


def advise(args: argparse.Namespace) -> None:
    import torch

    from apa_det.checkpoint.starting_weights import choose_starting_weights
    from apa_det.data import recipe
    from apa_det.data.advice import advise as advise_on
    from apa_det.data.advice import write_advice
    from apa_det.data.validation import is_coco_format, read_coco_or_lvis_json
    from apa_det.errors import UserError
    from apa_det.utils.json_files import local_path
    from apa_det.utils.writable import require_writable_folder

    require_writable_folder(args.output)
    require_config_output(args, args.image_root)
    if args.val and not args.write_config:
        raise UserError("--val is for the config: give --write-config too, or leave it out.")
    size = os.path.getsize(local_path(args.json_file)) / 1e6
    print(f"Reading {args.json_file} ({size:,.0f} MB) ...", flush=True)
    content = read_coco_or_lvis_json(args.json_file)
    counted = _counted(content, args.rare_max, args.common_max)
    print(f"Measuring {len(counted['annotations']):,} annotations ...", flush=True)
    num_gpus = int(torch.cuda.is_available()) if args.num_gpus is None else args.num_gpus
    start = choose_starting_weights(
        args.weights,
        recipe.class_names(counted),
        masks=recipe.has_masks(counted),
        cpu=num_gpus == 0,
    )
    advice = advise_on(args.json_file, counted, start)
    page = write_advice(advice, args.output)
    print(f"\n{advice}\n\nWrote {page} and {page.with_name('dataset.png')}.")
    if not args.write_config:
        return
    sets = [(args.json_file, content)]
    if args.val:
        sets.append((args.val, read_coco_or_lvis_json(args.val)))
    converted = [
        _in_lvis_format(path, data, args, content) if is_coco_format(data) else (path, data)
        for path, data in sets
    ]
    write_dataset_config(args, args.write_config, converted)


def _counted(content: dict, rare_max: int, common_max: int) -> dict:
    """Return a dataset without crowds and unusable annotations, with counts and frequencies."""
    from apa_det.data import complete_categories
    from apa_det.data.coco_to_lvis import usable_annotations
    from apa_det.data.validation import is_coco_format

    counted = {**content, "categories": [dict(c) for c in content["categories"]]}
    if is_coco_format(content):
        counted["annotations"] = usable_annotations(content)[0]
    complete_categories(counted, rare_max, common_max)
    return counted


def _in_lvis_format(
    path: str, coco: dict, args: argparse.Namespace, train: dict
) -> tuple[str, dict]:
    """Convert a dataset in COCO format and write it into the folder of the page."""
    from apa_det.data import coco_to_lvis
    from apa_det.errors import UserError
    from apa_det.utils.json_files import write_json

    output = os.path.join(args.output, f"{os.path.basename(path).partition('.')[0]}_lvis.json")
    if os.path.exists(output) and os.path.samefile(output, path):
        raise UserError(f"{path} would be overwritten: choose another --output.")
    converted = coco_to_lvis(
        coco,
        count_from=None if coco is train else train,
        rare_max=args.rare_max,
        common_max=args.common_max,
    )
    write_json(converted, output)
    print(f"Wrote {output}, which is {path} in LVIS format.")
    return output, converted
