"""Reading a dataset of LVIS's size and building the training loader, against detectron2.

Each measurement runs in its own process: see data_workers.py.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from tabulate import tabulate

from .data_file import IMAGES, write_dataset
from .processes import run_module

TITLES = {"ours": "apa_det", "detectron2": "detectron2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=int, default=IMAGES // 5, help=f"of LVIS v1 train: {IMAGES}"
    )
    parser.add_argument("--batches", type=int, default=10, help="of 16 images, for the throughput")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--processes", type=int, default=2, help="of a job: a power of 2")
    parser.add_argument(
        "--measure", nargs="+", choices=[*TITLES, "speed", "check"], help="default: all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    measures = args.measure or [*TITLES, "speed", "check"]
    with tempfile.TemporaryDirectory() as folder:
        file = write_dataset(Path(folder), args.images, args.seed)
        size = file.stat().st_size / 1e6
        print(
            f"{args.images:,} images, {size:,.0f} MB of JSON; {os.cpu_count()} CPU cores, "
            f"{args.workers} data workers",
            flush=True,
        )
        results = {}
        for library in [library for library in TITLES if library in measures]:
            results[library] = run_module("data_workers", "load", library, folder)
            if args.processes > 1:
                results[library]["processes"] = run_module(
                    "data_workers", "processes", library, folder, str(args.processes)
                )
        if results:
            print_table(results, args.processes)
        if "speed" in measures:
            numbers = (str(args.batches), str(args.workers))
            speed = results["speed"] = run_module("data_workers", "speed", folder, *numbers)
            speed["ratio"] = speed["ours"] / speed["detectron2"]
            print(
                "Images per second, batches in turn: apa_det {ours:.1f}, detectron2 "
                "{detectron2:.1f}, ratio {ratio:.2f}".format(**speed)
            )
        if "check" in measures:
            results["check"] = run_module("data_workers", "check", folder)
            numbers = results["check"]["seconds"], results["check"]["peak"]
            print("The check of the JSON file takes {:.1f} s and {:,.0f} MB.".format(*numbers))
    if args.json:
        Path(args.json).write_text(json.dumps({"images": args.images, **results}, indent=1))


def print_table(results: dict[str, dict], processes: int) -> None:
    rows = []
    for library, numbers in results.items():
        job = numbers.get("processes", {})
        rows.append(
            [
                TITLES[library],
                numbers["seconds"],
                numbers["cpu_seconds"],
                numbers["peak"],
                job.get("peak"),
                job["private"] + job["shared"] if job else None,
            ]
        )
    if len(results) == 2:
        ours, theirs = rows
        pairs = zip(ours[1:], theirs[1:], strict=True)
        rows.append(["ratio", *(a / b if a and b else None for a, b in pairs)])
    headers = ["", "seconds", "CPU seconds", "peak MB"]
    headers += [f"peak MB of\n{processes} processes", f"then kept by\n{processes} processes"]
    print("Up to a ready training loader, without the memory of imports:")
    print(tabulate(rows, headers=headers, floatfmt=",.2f"), flush=True)
