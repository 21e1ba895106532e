"""Training images with and without copy-paste, in one process without data workers."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from tabulate import tabulate

from apa_det import add_apa_config
from apa_det.data import (
    APADatasetMapper,
    build_train_loader,
    generate_dataset,
    load_lvis_format,
    register_lvis_format,
)

from .common import add_common_arguments, device_name, interleaved

PASTE = {"enabled": True}
# Name: the mapper's arguments, and the settings of copy-paste
LOADERS = {
    "polygons": ({}, [PASTE, {**PASTE, "prob": 1.0}, {**PASTE, "cache_mb": 0}]),
    "bitmaps": ({"instance_mask_format": "bitmask"}, [PASTE]),
    "boxes": ({"use_instance_mask": False}, [PASTE]),
    "another mapper": ({"augmentations": [T.RandomBrightness(0.9, 1.1)]}, [PASTE]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, dtype=False)
    parser.add_argument("--size", type=int, default=640, help="shorter side of the images")
    parser.add_argument("--images", type=int, default=40, help="images per measurement")
    parser.add_argument("--dataset", help="LVIS-format JSON file; by default, a synthetic one")
    parser.add_argument("--image-root", help="folder of its images")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # as in a data worker
    with tempfile.TemporaryDirectory() as folder:
        root, file = args.image_root, args.dataset
        if file is None:
            file = generate_dataset(folder, num_train=80, num_val=1, image_size=640)["train"]
            root = folder
        name = f"benchmark {folder}"
        register_lvis_format(name, file, root)
        records = load_lvis_format(file, root, name)
        records = [record for record in records if record["annotations"]]
        runs = _runs(records, name, args)
        seconds = interleaved(runs, args.repeats, torch.device("cpu"), time.process_time)
    rows, table = {}, []
    for row, value in seconds.items():
        base = row.partition(" + ")[0]
        ratio = value / seconds[base]
        rows[row] = {"seconds": value / args.images, "ratios": {base: ratio}}
        table.append((row, 1e3 * value / args.images, ratio))
    print(
        f"\nTraining images of {args.size} pixels; {device_name('cpu')}, CPU time of 1 "
        f"thread, median of {args.repeats} interleaved repeats of {args.images} images"
    )
    print(tabulate(table, ["", "ms per image", "against without"], floatfmt=["", ".2f", ".2f"]))
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows}, indent=1))


def _runs(records: list[dict], name: str, args: argparse.Namespace) -> dict[str, Callable]:
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (args.size,)
    cfg.MODEL.MASK_ON = True
    arguments = APADatasetMapper.from_config(cfg)
    jitter = cfg.clone()
    jitter.INPUT.LSJ.ENABLED, jitter.INPUT.LSJ.SIZE = True, args.size
    lsj = APADatasetMapper.from_config(jitter)
    runs = {}
    for title, (changes, pastes) in {**LOADERS, "large-scale jitter": (lsj, [PASTE])}.items():
        added = changes.get("augmentations", []) if changes is not lsj else []
        keys = {**arguments, **changes}
        keys["augmentations"] = [*(lsj if changes is lsj else arguments)["augmentations"], *added]
        for paste in [{}, *pastes]:
            loader = build_train_loader(
                records,
                mapper=APADatasetMapper(**keys),
                total_batch_size=1,
                dataset_names=name,
                copy_paste=paste,
                seed=1,
            )
            others = [f"{key} {value:g}" for key, value in paste.items() if key != "enabled"]
            row = " + ".join([title, *["copy-paste"] * bool(paste)])
            runs[", ".join([row, *others])] = _run(loader, args.images)
    return runs


def _run(loader, number: int) -> Callable[[], None]:
    def run() -> None:
        for _ in islice(loader, number):
            pass

    return run
