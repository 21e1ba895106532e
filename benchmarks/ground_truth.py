"""Reading the ground truth of LVIS evaluation, on generated data.

Each way of reading runs in its own process.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from .evaluation_data import make_dataset
from .processes import peak_memory, run_module

TITLES = {
    "ours": "apa_det, for boxes",
    "masks": "apa_det, for boxes and masks, in arrays",
    "json": "apa_det, all polygons by Python's JSON parser",
    "lvis": "lvis-api",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cat-info", help="as for evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    parser.set_defaults(run=run, detections=1)


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = make_dataset(Path(folder), args.images, args)
        print(f"\n{args.images:,} images, {source}; {os.cpu_count()} CPU cores", flush=True)
        runs = [
            {name: run_module("ground_truth", name, f"{folder}/gt.json") for name in TITLES}
            for _ in range(args.repeats)
        ]
    results = {name: min((r[name] for r in runs), key=lambda n: n["cpu"]) for name in TITLES}
    reference = results["json"]["cpu"]
    rows = [
        (
            *(TITLES[name], numbers["seconds"], numbers["cpu"], numbers["cpu"] / reference),
            *(numbers["peak"], numbers["peak"] - numbers["imports"]),
        )
        for name, numbers in results.items()
    ]
    headers = ["reading", "seconds", "of CPU", "ratio", "peak MB", "without imports"]
    print(tabulate(rows, headers=headers, floatfmt=("", ".2f", ".2f", ".2f", ",.0f", ",.0f")))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


def worker(name: str, json_file: str) -> dict:
    """Read a file in one way, in this process."""
    from lvis import LVIS

    from apa_det.data import read_lvis_json
    from apa_det.evaluation import GroundTruth

    imports = peak_memory()
    start = time.perf_counter(), time.process_time()
    if name == "lvis":
        LVIS(json_file)
    elif name == "json":
        GroundTruth.from_dataset(read_lvis_json(json_file))
    else:
        truth = GroundTruth.from_file(json_file)
        if name == "masks":
            _ = truth.segmentations[0]  # parses and checks all of them
    times = {
        "seconds": time.perf_counter() - start[0],
        "cpu": time.process_time() - start[1],  # also measures on a busy machine
    }
    return {**times, "peak": peak_memory(), "imports": imports}


if __name__ == "__main__":
    print(json.dumps(worker(*sys.argv[1:])))
