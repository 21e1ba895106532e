#!/usr/bin/env python3
"""Draw the figures of README.md in docs/images/ from a quickstart with saved predictions.

make quickstart ARGS="TEST.SAVE_PREDICTIONS True" && .venv/bin/python scripts/readme_figures.py
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from apa_det.demo import build_predictor, run_on_images
from apa_det.engine import read_job
from apa_det.evaluation import Comparison, compare
from apa_det.utils.plotting import grid, group_color

FOLDER = Path(__file__).parents[1] / "docs/images"
DATA, OUTPUT = Path("datasets/quickstart"), Path("output")
NUM_IMAGES = 2


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    results = str(OUTPUT / "inference/lvis_instances_results.json")
    comparison = compare(str(DATA / "val.json"), [results])
    figures = {"detections": draw_detections(), "long_tail": plot_long_tail(comparison)}
    for name, figure in figures.items():
        path = FOLDER / f"{name}.png"
        figure.savefig(path, dpi=100)
        Image.open(path).convert("RGB").quantize(256, kmeans=2).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1000} kB")


def draw_detections() -> Figure:
    """Draw what ``apa-det demo`` draws, of the first test images with objects of all groups."""
    job = read_job(str(OUTPUT / "config.yaml"), ["MODEL.WEIGHTS", str(OUTPUT / "model_final.pth")])
    dataset = json.loads((DATA / "val.json").read_text())
    group_of = {category["id"]: category["frequency"] for category in dataset["categories"]}
    shown = defaultdict(set)
    for annotation in dataset["annotations"]:
        shown[annotation["image_id"]].add(group_of[annotation["category_id"]])
    images = [image for image in dataset["images"] if len(shown[image["id"]]) == 3][:NUM_IMAGES]
    paths = [str(DATA / image["file_name"]) for image in images]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    with TemporaryDirectory() as folder:
        drawn = [f"{folder}/{Path(path).stem}.png" for path in paths]
        run_on_images(build_predictor(job, None), paths, drawn, f"{folder}/detections.json")
        for axis, path in zip(figure.subplots(1, len(drawn)), drawn, strict=True):
            axis.imshow(Image.open(path))
            axis.set_axis_off()
    return figure


def plot_long_tail(comparison: Comparison) -> Figure:
    """Plot the training images of each class, the most frequent first, and AP by group."""
    truth, (file,) = comparison.ground_truth, comparison.files
    metrics = file.by_iou_type["bbox"].metrics
    order = np.argsort(-truth.image_counts, kind="stable")
    colors = [group_color(i) for i in truth.category_groups[order].tolist()]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    counts, means = figure.subplots(1, 2, width_ratios=(2, 1))
    positions = np.arange(len(order))
    bars = counts.bar(positions, truth.image_counts[order], color=colors)
    counts.bar_label(bars, fontsize=8)
    counts.set(yscale="log", ylabel="training images (log scale)", title="Training images by class")
    counts.yaxis.set_major_formatter("{x:,.0f}")
    counts.set_xticks(positions, [truth.category_names[i] for i in order], rotation=90)
    keys = [f"AP{name}" for name in truth.groups.names]
    colors = [group_color(i) for i in range(len(keys))]
    means.bar_label(means.bar(keys, [metrics[key] for key in keys], color=colors), fmt="%.1f")
    means.set(title="AP by frequency group", ylabel="box AP")
    for axis in (counts, means):
        axis.margins(y=0.1)
        grid(axis, "y")
    names = enumerate(truth.groups.labels)
    patches = [Patch(color=group_color(i), label=f"{name} classes") for i, name in names]
    figure.legend(handles=patches, loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
