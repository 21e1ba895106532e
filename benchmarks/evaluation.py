"""LVIS evaluation of apa_det against other libraries, on synthetic data of any size.

Each library runs in its own process: see evaluation_workers.py.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from tabulate import tabulate

from .evaluation_data import make_dataset
from .processes import run_module

IOU_TYPES = ("bbox", "segm")
TITLES = {
    "ours": "apa_det, from Instances in memory",
    "fast": "ultrafast-pycocotools, from files",
    "lvis": "lvis-api, from files",
}
LVIS_API_LIMIT = 5_000  # images; beyond it, lvis-api takes many minutes and gigabytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, nargs="+", default=[1000])
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--iou-type", nargs="+", choices=IOU_TYPES, default=list(IOU_TYPES))
    parser.add_argument("--measure", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument(
        "--cat-info",
        help="JSON list of categories with image_count, instance_count and frequency; default: "
        "lvis/lvis_v1_train_cat_info.json in the folder named by APA_DET_TEST_DATA, or a Zipf law "
        "with the group sizes of LVIS v1 if that variable is not set",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    results = [
        {"images": num_images, "iou_type": iou_type, **numbers}
        for num_images in args.images
        for iou_type, numbers in measure(args, num_images).items()
    ]
    if len(args.images) > 1:
        print_scaling(results)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


def measure(args: argparse.Namespace, num_images: int) -> dict[str, dict]:
    """Generate the data, measure each library in its own process, and print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        source = make_dataset(Path(folder), num_images, args)
        what = f"\n{num_images:,} images with {args.detections} detections each, {source}"
        print(f"{what}; {os.cpu_count()} CPU cores", flush=True)
        libraries = [w for w in args.measure if w != "lvis" or num_images <= LVIS_API_LIMIT]
        results = {}
        for iou_type in args.iou_type:
            if set(libraries) - {"ours"}:
                run_module("evaluation_workers", "write", iou_type, folder)
            results[iou_type] = {
                library: run_module("evaluation_workers", library, iou_type, folder)
                for library in libraries
            }
            print_table(iou_type, results[iou_type])
        if libraries != args.measure:
            print(f"lvis-api is skipped for more than {LVIS_API_LIMIT:,} images.")
    return results


def print_table(iou_type: str, results: dict[str, dict]) -> None:
    reference = results.get("lvis") or results.get("fast") or results["ours"]
    rows = []
    for library, numbers in results.items():
        speedup = reference["seconds"] / numbers["seconds"]
        memory = numbers["peak"], numbers["peak"] - numbers["imports"]
        rows.append((TITLES[library], numbers["seconds"], speedup, *memory, 100 * numbers["AP"]))
    headers = [iou_type, "seconds", "speedup", "peak MB", "without imports", "AP"]
    print(tabulate(rows, headers=headers, floatfmt=("", ".2f", ".1f", ",.0f", ",.0f", ".6f")))
    if ours := results.get("ours"):
        overhead = 1 - ours["engine"] / (ours["process"] + ours["evaluate"])
        print(
            f"apa_det: reading the ground truth {ours['read']:.2f} s, process() "
            f"{ours['process']:.2f} s, evaluate() {ours['evaluate']:.2f} s, including "
            f"{ours['engine']:.2f} s in the engine; {overhead:.0%} of process() and evaluate() is "
            "outside the engine. Creating the Instances is not included.",
            flush=True,
        )


def print_scaling(results: list[dict]) -> None:
    print("\nScaling of apa_det: process() and evaluate()")
    rows = []
    for iou_type in IOU_TYPES:
        runs = [r for r in results if r["iou_type"] == iou_type and "ours" in r]
        for run in runs:
            seconds = run["ours"]["process"] + run["ours"]["evaluate"]
            rows.append((iou_type, run["images"], seconds, 1000 * seconds / run["images"]))
    headers = ["", "images", "seconds", "seconds per 1,000"]
    print(tabulate(rows, headers=headers, floatfmt=("", ",", ".2f", ".3f"), intfmt=","))
