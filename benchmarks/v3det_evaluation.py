"""Box AP of V3Det's classes, of apa_det against detectron2's COCOEvaluator, on generated data.

Each evaluator runs in its own process.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

from .processes import peak_memory, run_module

CLASSES, IMAGES, OBJECTS = 13_204, 29_821, 178_475  # of V3Det val
HEIGHT, WIDTH = 600, 800
TITLES = {"ours": "apa_det", "detectron2": "detectron2's COCOEvaluator"}
DETECTRON2_LIMIT = 100  # images; the records of all images and classes take 3.5 GB then
NAME = "benchmark_v3det"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, nargs="+", default=[DETECTRON2_LIMIT])
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--detections", type=int, default=300, help="per image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    results = [measure(args, number) for number in args.images]
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


def measure(args: argparse.Namespace, num_images: int) -> dict:
    """Generate the data, measure each evaluator in its own process, and print a table."""
    print(
        f"\n{num_images:,} images with {args.detections} detections each, {args.classes:,} "
        f"classes; {os.cpu_count()} CPU cores",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), num_images, args)
        names = [n for n in TITLES if n == "ours" or num_images <= DETECTRON2_LIMIT]
        results = {n: run_module("v3det_evaluation", n, folder) for n in names}
    reference = results[names[-1]]["cpu"]
    rows = [
        (
            *(TITLES[name], numbers["seconds"], numbers["cpu"], reference / numbers["cpu"]),
            *(numbers["peak"], numbers["peak"] - numbers["imports"], numbers["AP"]),
        )
        for name, numbers in results.items()
    ]
    headers = ["boxes", "seconds", "of CPU", "speedup", "peak MB", "without imports", "AP"]
    formats = ("", ".1f", ".1f", ".1f", ",.0f", ",.0f", ".6f")
    print(tabulate(rows, headers=headers, floatfmt=formats))
    if len(names) == 1:
        print(f"COCOEvaluator is skipped for more than {DETECTRON2_LIMIT:,} images.")
    return {"images": num_images, **results}


def make_dataset(folder: Path, num_images: int, args: argparse.Namespace) -> None:
    """Write a ground truth in COCO format and the detections of each image."""
    rng = np.random.default_rng(args.seed)
    weights = 1 / np.arange(1, args.classes + 1) ** 0.9  # Zipf's law
    weights = rng.permutation(weights / weights.sum())
    objects = max(1, round(OBJECTS * num_images / IMAGES))
    images = np.sort(rng.integers(num_images, size=objects))
    classes = rng.choice(args.classes, objects, p=weights)
    boxes = draw_boxes(rng, objects)
    annotations = [
        {
            **{"id": i, "image_id": image + 1, "category_id": k + 1, "iscrowd": 0},
            **{"bbox": box, "area": box[2] * box[3]},
        }
        for i, (image, k, box) in enumerate(
            zip(images.tolist(), classes.tolist(), boxes.tolist(), strict=True), 1
        )
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    dataset = {
        "images": [{"id": i, "file_name": f"{i}.jpg", **size} for i in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, args.classes + 1)],
    }
    (folder / "gt.json").write_text(json.dumps(dataset))
    np.savez(
        folder / "truth.npz",
        **{"images": images, "classes": classes, "boxes": boxes, "weights": np.cumsum(weights)},
        **{"number": num_images, "detections": args.detections, "seed": args.seed},
    )


def draw_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return (number, 4) XYWH."""
    sides = np.exp(rng.normal(np.log(90), 0.9, (number, 2))).clip(4, (WIDTH - 1, HEIGHT - 1))
    corners = rng.random((number, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate([corners, sides], axis=1).round(2)


class Detector:
    """The detections of each image, the same for all evaluators."""

    def __init__(self, folder: Path):
        data = np.load(folder / "truth.npz")
        self._number, self._seed = int(data["detections"]), int(data["seed"])
        self._weights = data["weights"]
        cuts = np.searchsorted(data["images"], np.arange(1, int(data["number"])))
        self._classes = np.split(data["classes"], cuts)
        self._boxes = np.split(data["boxes"], cuts)

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return classes, scores and boxes (XYXY float32) of image i."""
        rng = np.random.default_rng((self._seed, i))
        classes, boxes = self._classes[i][: self._number], self._boxes[i][: self._number]
        detected = rng.random(len(classes)) < 0.8
        near = boxes[detected] + rng.normal(0, 0.05, (detected.sum(), 4)) * boxes[detected, 2:].max(
            axis=1, keepdims=True, initial=1
        )
        rest = self._number - len(near)
        others = np.searchsorted(self._weights, rng.random(rest) * self._weights[-1])
        if len(classes):  # some false positives are of classes in the image
            confused = rng.random(rest) < 0.15
            others[confused] = rng.choice(classes, confused.sum())
        result = np.concatenate([near, draw_boxes(rng, rest)]).astype(np.float32)
        result[:, 2:] = result[:, :2] + result[:, 2:].clip(1)
        scores = rng.beta(0.6, 6, self._number)
        scores[: len(near)] += 0.4 * rng.random(len(near))
        return np.concatenate([classes[detected], others]), scores.astype(np.float32), result


def worker(name: str, folder: Path) -> dict:
    """Evaluate with one evaluator, in this process."""
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    from apa_det.evaluation import V3DetEvaluator

    detector = Detector(folder)
    register_coco_instances(NAME, {}, str(folder / "gt.json"), str(folder))
    number = len(json.loads((folder / "gt.json").read_text())["categories"])
    MetadataCatalog.get(NAME).set(  # known once the data loader has read the file
        thing_classes=[f"c{i}" for i in range(1, number + 1)],
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(number)},
    )
    imports = peak_memory()
    clock = Clock()
    clock.start()
    if name == "ours":
        evaluator = V3DetEvaluator(NAME, distributed=False)
    else:
        options = {"max_dets_per_image": 300, "use_fast_impl": False, "distributed": False}
        evaluator = COCOEvaluator(NAME, ("bbox",), **options)
    evaluator.reset()
    clock.stop()
    for i in range(len(detector)):
        classes, scores, boxes = detector[i]
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        instances.scores = torch.from_numpy(scores)
        instances.pred_classes = torch.from_numpy(classes)
        clock.start()
        evaluator.process([{"image_id": i + 1}], [{"instances": instances}])
        clock.stop()
    clock.start()
    ap = evaluator.evaluate()["bbox"]["AP"]
    clock.stop()
    times = {"seconds": clock.seconds, "cpu": clock.cpu}
    return {**times, "peak": peak_memory(), "imports": imports, "AP": ap}


class Clock:
    """Adds up the time between start and stop, and that of the CPU, also on a busy machine."""

    def __init__(self):
        self.seconds = self.cpu = 0.0

    def start(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


if __name__ == "__main__":
    import contextlib

    with contextlib.redirect_stdout(sys.stderr):  # pycocotools prints
        numbers = worker(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps(numbers))
