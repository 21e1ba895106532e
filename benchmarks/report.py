"""The report of several result files, on synthetic data of any size.

The command runs in its own process, as a user runs it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .evaluation_data import Detector, make_dataset
from .processes import ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=150, help="per image and file")
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--boxes", action="store_true", help="result files without masks")
    parser.add_argument("--cat-info", help="as for evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="write data and report here, and keep them")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = make_dataset(folder, args.images, args)
        files = [folder / f"detector{i}.json" for i in range(1, args.files + 1)]
        for seed, file in enumerate(files, args.seed + 1):
            write(Detector(folder, seed), file, masks=not args.boxes)
        print(
            f"\n{args.images:,} images, {args.files} files of {args.detections} detections per "
            f"image, {source}; {os.cpu_count()} CPU cores",
            flush=True,
        )
        command = [sys.executable, "-m", "apa_det_cli", "evaluate-predictions"]
        command += ["--gt", folder / "gt.json", "--results", *files, "--report", folder / "report"]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (folder / "report" / "report.html").stat().st_size
        print(
            f"{seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU, peak "
            f"{used.ru_maxrss / 1e6:.2f} GB, page {page / 1e6:.1f} MB"
        )


def write(detector: Detector, path: Path, *, masks: bool) -> None:
    """Write the detections of a detector as LVIS results with boxes, and with masks or without."""
    with open(path, "w") as file:
        for i in range(len(detector)):
            classes, scores, boxes, counts, size = detector[i]
            boxes[:, 2:] -= boxes[:, :2]
            shapes = [{"size": size, "counts": c.decode()} for c in counts]
            columns = detector.ids[classes].tolist(), scores.tolist(), boxes.tolist(), shapes
            for category_id, score, box, shape in zip(*columns, strict=True):
                record = {
                    "image_id": i + 1,
                    "category_id": category_id,
                    "bbox": box,
                    "score": score,
                }
                if masks:
                    record["segmentation"] = shape
                file.write(("," if file.tell() else "[") + json.dumps(record))
        file.write("]")
