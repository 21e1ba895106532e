"""The evaluation benchmark: LVIS-like data of any size, and each way to evaluate it measured alone.

benchmarks/benchmark.py evaluate is its command line; it runs this file for each measurement.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

CAT_INFO = Path(__file__).parents[1] / "../shared/data/lvis/lvis_v1_train_cat_info.json"
TRAIN_PICTURES = 100_170  # of LVIS v1
NEGATIVES, NOT_EXHAUSTIVE = 9.4, 0.16  # categories for each picture, in 100 pictures of LVIS val
SIZES = ((480, 640), (427, 640), (640, 480))  # height, width
SHAPES, VARIANTS = 400, 3  # of each picture size
IOU_TYPES = ("bbox", "segm")
TITLES = {
    "ours": "apa_det, from Instances in memory",
    "fast": "ultrafast-pycocotools, from files",
    "lvis": "lvis-api, from files",
}
LVIS_API_LIMIT = 5_000  # pictures; beyond, lvis-api takes many minutes and gigabytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=int, nargs="+", default=[1000])
    parser.add_argument("--detections", type=int, default=300, help="for each picture")
    parser.add_argument("--iou-type", nargs="+", choices=IOU_TYPES, default=list(IOU_TYPES))
    parser.add_argument("--measure", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument(
        "--cat-info",
        default=str(CAT_INFO),
        help="JSON list of categories with image_count, instance_count and frequency; a Zipf law "
        "with the group sizes of LVIS v1 where there is no such file",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the numbers to this file too")
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> None:
    results = [
        {"pictures": pictures, "iou_type": iou_type, **numbers}
        for pictures in args.pictures
        for iou_type, numbers in measure(args, pictures).items()
    ]
    if len(args.pictures) > 1:
        print_growth(results)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


def measure(args: argparse.Namespace, pictures: int) -> dict[str, dict]:
    """Make the data once, and measure each way in a process of its own; print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        source = make_dataset(Path(folder), pictures, args)
        print(
            f"\n{pictures:,} pictures with {args.detections} detections each, {source}; "
            f"{os.cpu_count()} processors",
            flush=True,
        )
        ways = [w for w in args.measure if w != "lvis" or pictures <= LVIS_API_LIMIT]
        results = {}
        for iou_type in args.iou_type:
            if set(ways) - {"ours"}:
                run_worker("write", iou_type, folder)
            results[iou_type] = {way: run_worker(way, iou_type, folder) for way in ways}
            print_table(iou_type, results[iou_type])
        if ways != args.measure:
            print(f"lvis-api is left out beyond {LVIS_API_LIMIT:,} pictures.")
    return results


def run_worker(what: str, iou_type: str, folder: str) -> dict:
    command = [sys.executable, __file__, what, iou_type, folder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(iou_type: str, results: dict[str, dict]) -> None:
    reference = results.get("lvis") or results.get("fast") or results["ours"]
    rows = [
        (
            TITLES[way],
            numbers["seconds"],
            reference["seconds"] / numbers["seconds"],
            numbers["peak"],
            numbers["peak"] - numbers["imports"],
            100 * numbers["AP"],
        )
        for way, numbers in results.items()
    ]
    headers = [iou_type, "seconds", "times as fast", "peak MB", "less imports", "AP"]
    print(tabulate(rows, headers=headers, floatfmt=("", ".2f", ".1f", ",.0f", ",.0f", ".6f")))
    ours = results.get("ours")
    if ours:
        overhead = 1 - ours["engine"] / (ours["process"] + ours["evaluate"])
        print(
            f"apa_det: ground truth read {ours['read']:.2f} s, process {ours['process']:.2f} s, "
            f"evaluate {ours['evaluate']:.2f} s, of which the engine {ours['engine']:.2f} s; all "
            f"but the engine is {overhead:.0%} of process and evaluate. The Instances "
            "are made while the clock stands still.",
            flush=True,
        )


def print_growth(results: list[dict]) -> None:
    print("\nGrowth of apa_det, process and evaluate")
    rows = []
    for iou_type in IOU_TYPES:
        runs = [r for r in results if r["iou_type"] == iou_type and "ours" in r]
        for run in runs:
            seconds = run["ours"]["process"] + run["ours"]["evaluate"]
            rows.append((iou_type, run["pictures"], seconds, 1000 * seconds / run["pictures"]))
    headers = ["", "pictures", "seconds", "seconds for 1,000"]
    print(tabulate(rows, headers=headers, floatfmt=("", ",", ".2f", ".3f"), intfmt=","))


# The data


def read_categories(path: str) -> tuple[list[dict], str]:
    """Categories with ``image_count``, ``instance_count``, ``frequency``; and where from."""
    if os.path.isfile(path):
        with open(path) as file:
            categories = json.load(file)
        return categories, f"category frequencies of {os.path.basename(path)}"
    counts = np.round(TRAIN_PICTURES * 0.02 / np.arange(1, 1204) ** 1.1).astype(int) + 1
    groups = ["f"] * 405 + ["c"] * 461 + ["r"] * 337
    categories = [
        {"id": i, "name": f"c{i}", "image_count": n, "instance_count": 3 * n, "frequency": group}
        for i, (n, group) in enumerate(zip(counts.tolist(), groups, strict=True), 1)
    ]
    return categories, "category frequencies by a Zipf law"


def make_dataset(folder: Path, pictures: int, args: argparse.Namespace) -> str:
    """Write an LVIS-format ground truth, and what the detections are drawn from."""
    rng = np.random.default_rng(args.seed)
    categories, source = read_categories(args.cat_info)
    shapes = [make_shapes(rng, height, width) for height, width in SIZES]
    image_counts = np.array([category["image_count"] for category in categories])
    instances = np.array([c["instance_count"] for c in categories]) / np.maximum(image_counts, 1)
    # Where each category is: as often as in the training set, rare ones maybe nowhere.
    where = [
        rng.choice(pictures, min(rng.poisson(n * pictures / TRAIN_PICTURES), pictures), False)
        for n in image_counts
    ]
    shown = [[] for _ in range(pictures)]
    for place, images in enumerate(where):
        for image in images.tolist():
            shown[image].append(place)
    searched = np.where([c["frequency"] == "r" for c in categories], 0.35, 1.0)
    images, annotations, truth = [], [], []
    ids = np.array([category["id"] for category in categories])
    for i in range(pictures):
        size = int(rng.integers(len(SIZES)))
        negatives = rng.choice(
            len(ids), min(rng.poisson(NEGATIVES), len(ids)), False, searched / searched.sum()
        )
        positive = shown[i]
        images.append(
            {
                "id": i + 1,
                "file_name": f"{i + 1}.jpg",
                "height": SIZES[size][0],
                "width": SIZES[size][1],
                "neg_category_ids": ids[np.setdiff1d(negatives, positive)].tolist(),
                "not_exhaustive_category_ids": [
                    int(ids[k]) for k in positive if rng.random() < NOT_EXHAUSTIVE / 3.6
                ],
            }
        )
        for place in positive:
            for shape in rng.integers(SHAPES, size=1 + rng.poisson(max(instances[place] - 1, 0))):
                truth.append((i, place, shape))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": int(ids[place]),
                        "bbox": shapes[size].boxes[shape, 0].tolist(),
                        "area": float(shapes[size].areas[shape]),
                        "segmentation": [shapes[size].polygons[shape]],
                    }
                )
    keys = ("id", "name", "image_count", "instance_count", "frequency")
    dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{key: category[key] for key in keys} for category in categories],
    }
    (folder / "gt.json").write_text(json.dumps(dataset))
    columns = {f"boxes{k}": shape.boxes for k, shape in enumerate(shapes)}
    for k, shape in enumerate(shapes):
        columns[f"counts{k}"] = np.array(shape.counts, object)
    np.savez(
        folder / "pool.npz",
        truth=np.array(truth, np.int64).reshape(-1, 3),
        sizes=[SIZES.index((image["height"], image["width"])) for image in images],
        ids=ids,
        weights=np.sqrt(image_counts) / np.sqrt(image_counts).sum(),
        detections=args.detections,
        seed=args.seed,
        **columns,
    )
    return source


@dataclass
class Shapes:
    """Things to find in pictures of one size, and detections of each: as good as a 28 x 28 mask."""

    boxes: np.ndarray  # (SHAPES, 1 + VARIANTS, 4) XYWH: the thing itself and its detections
    areas: np.ndarray  # (SHAPES,)
    polygons: list[list[float]]
    counts: list[list[bytes]]  # of the RLEs of the detections


def make_shapes(rng: np.random.Generator, height: int, width: int) -> Shapes:
    import pycocotools.mask as mask_util

    # As in LVIS: half of all things are smaller than 26 x 26 pixels.
    sides = np.exp(rng.normal(np.log(26), 1.0, SHAPES))[:, None] * rng.uniform(
        0.7, 1.4, (SHAPES, 2)
    )
    sides = np.clip(sides, 3, (0.9 * width, 0.9 * height))
    corners = rng.random((SHAPES, 2)) * ((width, height) - sides)
    angles = np.linspace(0, 2 * np.pi, 30)[:-1]
    boxes = np.empty((SHAPES, 1 + VARIANTS, 4))
    areas, polygons, counts = np.empty(SHAPES), [], []
    for i, (corner, side) in enumerate(zip(corners, sides, strict=True)):
        wobble = rng.uniform(0.85, 1.0, len(angles))
        outline = np.stack([np.cos(angles) * wobble, np.sin(angles) * wobble], 1) / 2 + 0.5
        versions = [corner + outline * side]
        for _ in range(VARIANTS):  # a detection: shifted, and of 28 x 28 cells
            shift, scale = rng.normal(0, 0.05, 2), rng.normal(1, 0.07, 2)
            cells = np.round(outline * 28) / 28
            versions.append(corner + (cells * scale + shift) * side)
        for j, polygon in enumerate(versions):
            polygon = np.clip(polygon, 0, (width, height)).round(2)
            low, high = polygon.min(0), polygon.max(0)
            boxes[i, j] = [*low, *(high - low)]
            versions[j] = polygon.ravel().tolist()
        rles = mask_util.frPyObjects(versions, height, width)
        areas[i] = max(1, mask_util.area(rles[0]))
        polygons.append(versions[0])
        counts.append([rle["counts"] for rle in rles[1:]])
    return Shapes(boxes.round(2), areas, polygons, counts)


class Detector:
    """Gives the detections of one picture after another, the same for all ways of evaluation."""

    def __init__(self, folder: Path):
        pool = np.load(folder / "pool.npz", allow_pickle=True)
        self.ids = pool["ids"]
        self._sizes = pool["sizes"].tolist()
        self._number, self._seed = int(pool["detections"]), int(pool["seed"])
        self._cumulated = np.cumsum(pool["weights"])
        self._boxes = [pool[f"boxes{k}"][:, 1:].astype(np.float32) for k in range(len(SIZES))]
        self._counts = [pool[f"counts{k}"] for k in range(len(SIZES))]
        truth = pool["truth"]
        ends = np.searchsorted(truth[:, 0], np.arange(1, len(self._sizes)))
        self._truth = np.split(truth[:, 1:], ends)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        """Classes, scores, boxes (XYXY float32) and RLE bytes of picture i, with its size."""
        rng = np.random.default_rng((self._seed, i))
        truth = self._truth[i][: self._number]
        found = truth[rng.random(len(truth)) < 0.9]
        rest = self._number - len(found)
        classes = np.searchsorted(self._cumulated, rng.random(rest) * self._cumulated[-1])
        if len(truth):  # some of the false ones confuse categories that are in the picture
            confused = rng.random(rest) < 0.15
            classes[confused] = truth[rng.integers(len(truth), size=confused.sum()), 0]
        classes = np.concatenate([found[:, 0], classes])
        shapes = np.concatenate([found[:, 1], rng.integers(SHAPES, size=rest)])
        variants = rng.integers(VARIANTS, size=self._number)
        scores = rng.beta(0.6, 6, self._number)
        scores[: len(found)] += 0.4 * rng.random(len(found))
        size = self._sizes[i]
        boxes = self._boxes[size][shapes, variants]
        boxes[:, 2:] += boxes[:, :2]
        counts = self._counts[size][shapes, variants]
        return classes, scores.astype(np.float32), boxes, counts, SIZES[size]


# The ways of evaluation, each run in a process of its own


def memory() -> float:
    """The most memory that this process has held so far, in MB."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # getrusage starts from what the parent held
                return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes


def write(iou_type: str, folder: Path) -> dict:
    detector = Detector(folder)
    with open(folder / "results.json", "w") as file:
        for i in range(len(detector)):
            classes, scores, boxes, counts, size = detector[i]
            boxes[:, 2:] -= boxes[:, :2]
            columns = [detector.ids[classes].tolist(), scores.tolist()]
            if iou_type == "bbox":
                columns.append(boxes.tolist())
            else:
                columns.append([{"size": size, "counts": c.decode()} for c in counts])
            geometry = "bbox" if iou_type == "bbox" else "segmentation"
            for category_id, score, shape in zip(*columns, strict=True):
                record = {"image_id": i + 1, "category_id": category_id, "score": score}
                start = "," if file.tell() else "["
                file.write(start + json.dumps({**record, geometry: shape}))
        file.write("]")
    return {}


def ours(iou_type: str, folder: Path) -> dict:
    import torch
    from detectron2.structures import Boxes, Instances

    from apa_det.data import ensure_metadata, register_lvis_format
    from apa_det.evaluation import LongTailEvaluator, fast_engine

    detector = Detector(folder)
    imports = memory()
    engine = fast_engine.native = Timed(fast_engine.native)
    register_lvis_format("benchmark", folder / "gt.json", folder)
    ensure_metadata("benchmark")  # whoever loads the pictures needs it first
    start = time.perf_counter()
    evaluator = LongTailEvaluator("benchmark", (iou_type,), distributed=False)
    read = time.perf_counter() - start
    process = 0.0
    for i in range(len(detector)):
        classes, scores, boxes, counts, size = detector[i]
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        instances.scores = torch.from_numpy(scores)
        instances.pred_classes = torch.from_numpy(classes)
        if iou_type == "segm":
            instances.pred_masks_rle = [{"size": list(size), "counts": c} for c in counts]
        start = time.perf_counter()
        evaluator.process([{"image_id": i + 1}], [{"instances": instances}])
        process += time.perf_counter() - start
    start = time.perf_counter()
    results = evaluator.evaluate()
    evaluate = time.perf_counter() - start
    return {
        "seconds": read + process + evaluate,
        "read": read,
        "process": process,
        "evaluate": evaluate,
        "engine": engine.seconds,
        "peak": memory(),
        "imports": imports,
        "AP": results[iou_type]["AP"] / 100,
    }


class Timed:
    """A module or object with the time counted that its functions and methods take."""

    def __init__(self, target, clock: "Timed | None" = None):
        self._target, self._clock = target, clock or self
        self.seconds = 0.0

    def __getattr__(self, name: str):
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args, **kwargs):
            start = time.perf_counter()
            result = value(*args, **kwargs)
            self._clock.seconds += time.perf_counter() - start
            return Timed(result, self._clock) if isinstance(value, type) else result

        return call


def fast(iou_type: str, folder: Path) -> dict:
    from ultrafast_pycocotools import COCO, COCOeval

    imports = memory()
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        truth = COCO(folder / "gt.json", verbose=False)
        found = truth.loadRes(folder / "results.json")
        run = COCOeval(truth, found, iou_type, lvis_style=True, print_function=lambda _: None)
        run.run()
    seconds = time.perf_counter() - start
    ap = run.stats_as_dict["AP"]
    return {"seconds": seconds, "peak": memory(), "imports": imports, "AP": ap}


def lvis(iou_type: str, folder: Path) -> dict:
    from lvis import LVIS, LVISEval, LVISResults

    np.float = float  # lvis-api 0.5.3 knows no later numpy
    imports = memory()
    start = time.perf_counter()
    truth = LVIS(str(folder / "gt.json"))
    run = LVISEval(truth, LVISResults(truth, str(folder / "results.json")), iou_type)
    run.run()
    seconds = time.perf_counter() - start
    ap = float(run.results["AP"])
    return {"seconds": seconds, "peak": memory(), "imports": imports, "AP": ap}


WORKERS = {"write": write, "ours": ours, "fast": fast, "lvis": lvis}


if __name__ == "__main__":
    what, iou_type, folder = sys.argv[1:]
    print(json.dumps(WORKERS[what](iou_type, Path(folder))))
