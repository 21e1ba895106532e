"""Synthetic LVIS ground truth and detections for the evaluation benchmark."""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CAT_INFO = "lvis/lvis_v1_train_cat_info.json"  # in the folder APA_DET_TEST_DATA
TRAIN_IMAGES = 100_170  # of LVIS v1
NEGATIVES, NOT_EXHAUSTIVE = 9.4, 0.16  # categories per image, measured on 100 images of LVIS val
SIZES = ((480, 640), (427, 640), (640, 480))  # height, width
SHAPES, VARIANTS = 400, 3  # per image size; detections per shape


def read_categories(path: str | None) -> tuple[list[dict], str]:
    """Return categories with image_count, instance_count and frequency, and their description."""
    folder = os.environ.get("APA_DET_TEST_DATA")
    if path or folder:
        path = Path(path or Path(folder, CAT_INFO))
        if not path.is_file():
            sys.exit(f"{path} does not exist. Check --cat-info or APA_DET_TEST_DATA.")
        return json.loads(path.read_text()), f"category frequencies of {path.name}"
    print(
        "APA_DET_TEST_DATA is not set, so the category frequencies follow a Zipf law. Set it to a "
        f"folder that contains {CAT_INFO} to use those of LVIS v1."
    )
    counts = np.round(TRAIN_IMAGES * 0.02 / np.arange(1, 1204) ** 1.1).astype(int) + 1
    groups = ["f"] * 405 + ["c"] * 461 + ["r"] * 337
    categories = [
        {"id": i, "name": f"c{i}", "image_count": n, "instance_count": 3 * n, "frequency": group}
        for i, (n, group) in enumerate(zip(counts.tolist(), groups, strict=True), 1)
    ]
    return categories, "category frequencies by a Zipf law"


def make_dataset(folder: Path, num_images: int, args: argparse.Namespace) -> str:
    """Write a ground truth in LVIS format and the pool of detections; return a description."""
    rng = np.random.default_rng(args.seed)
    categories, source = read_categories(args.cat_info)
    shapes = [make_shapes(rng, height, width) for height, width in SIZES]
    image_counts = np.array([category["image_count"] for category in categories])
    instances = np.array([c["instance_count"] for c in categories]) / np.maximum(image_counts, 1)
    # Categories are as frequent as in the training set, so rare ones may not occur.
    images_of_category = [
        rng.choice(num_images, min(rng.poisson(n * num_images / TRAIN_IMAGES), num_images), False)
        for n in image_counts
    ]
    positives = [[] for _ in range(num_images)]
    for category, its_images in enumerate(images_of_category):
        for image in its_images.tolist():
            positives[image].append(category)
    negative_weights = np.where([c["frequency"] == "r" for c in categories], 0.35, 1.0)
    negative_shares = negative_weights / negative_weights.sum()
    images, annotations, truth = [], [], []
    ids = np.array([category["id"] for category in categories])
    for i in range(num_images):
        size = int(rng.integers(len(SIZES)))
        number = min(rng.poisson(NEGATIVES), len(ids))
        negatives = rng.choice(len(ids), number, False, negative_shares)
        positive = positives[i]
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
        for k in positive:
            for shape in rng.integers(SHAPES, size=1 + rng.poisson(max(instances[k] - 1, 0))):
                truth.append((i, k, shape))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": int(ids[k]),
                        "bbox": shapes[size].boxes[shape, 0].tolist(),
                        "area": float(shapes[size].areas[shape]),
                        "segmentation": [shapes[size].polygons[shape]],
                    }
                )
    keys = ("id", "name", "image_count", "instance_count", "frequency")
    categories = [{key: category[key] for key in keys} for category in categories]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "gt.json").write_text(json.dumps(dataset))
    columns = {f"boxes{k}": shape.boxes for k, shape in enumerate(shapes)}
    for k, shape in enumerate(shapes):
        columns[f"counts{k}"] = np.array(shape.counts)  # bytes
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
    """Objects in images of one size, and detections of each, as precise as a 28 x 28 mask."""

    boxes: np.ndarray  # (SHAPES, 1 + VARIANTS, 4) XYWH: object, detections
    areas: np.ndarray  # (SHAPES,)
    polygons: list[list[float]]
    counts: list[list[bytes]]  # RLE counts of the detections


def make_shapes(rng: np.random.Generator, height: int, width: int) -> Shapes:
    import pycocotools.mask as mask_util

    # As in LVIS, half of the objects are smaller than 26 x 26 pixels.
    sizes = np.exp(rng.normal(np.log(26), 1.0, SHAPES))[:, None]
    sides = sizes * rng.uniform(0.7, 1.4, (SHAPES, 2))
    sides = np.clip(sides, 3, (0.9 * width, 0.9 * height))
    corners = rng.random((SHAPES, 2)) * ((width, height) - sides)
    angles = np.linspace(0, 2 * np.pi, 30)[:-1]
    boxes = np.empty((SHAPES, 1 + VARIANTS, 4))
    areas, polygons, counts = np.empty(SHAPES), [], []
    for i, (corner, side) in enumerate(zip(corners, sides, strict=True)):
        wobble = rng.uniform(0.85, 1.0, len(angles))
        outline = np.stack([np.cos(angles) * wobble, np.sin(angles) * wobble], 1) / 2 + 0.5
        versions = [corner + outline * side]
        for _ in range(VARIANTS):  # detections: shifted, scaled and rounded to 28 x 28 cells
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
    """The detections of each image, the same for all libraries."""

    def __init__(self, folder: Path, seed: int | None = None):
        """
        Args:
            folder: written by :func:`make_dataset`.
            seed: that of another detector. None: that of the dataset.
        """
        pool = np.load(folder / "pool.npz")
        self.ids = pool["ids"]
        self._sizes = pool["sizes"].tolist()
        self._number = int(pool["detections"])
        self._seed = int(pool["seed"]) if seed is None else seed
        self._cumulative_weights = np.cumsum(pool["weights"])
        self._boxes = [pool[f"boxes{k}"][:, 1:].astype(np.float32) for k in range(len(SIZES))]
        self._counts = [pool[f"counts{k}"] for k in range(len(SIZES))]
        truth = pool["truth"]
        ends = np.searchsorted(truth[:, 0], np.arange(1, len(self._sizes)))
        self._truth = np.split(truth[:, 1:], ends)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        """Return classes, scores, boxes (XYXY float32), RLE counts and size of image i."""
        rng = np.random.default_rng((self._seed, i))
        truth = self._truth[i][: self._number]
        detected = truth[rng.random(len(truth)) < 0.9]
        rest = self._number - len(detected)
        weights = self._cumulative_weights
        classes = np.searchsorted(weights, rng.random(rest) * weights[-1])
        if len(truth):  # some false positives are of categories in the image
            confused = rng.random(rest) < 0.15
            classes[confused] = truth[rng.integers(len(truth), size=confused.sum()), 0]
        classes = np.concatenate([detected[:, 0], classes])
        shapes = np.concatenate([detected[:, 1], rng.integers(SHAPES, size=rest)])
        variants = rng.integers(VARIANTS, size=self._number)
        scores = rng.beta(0.6, 6, self._number)
        scores[: len(detected)] += 0.4 * rng.random(len(detected))
        size = self._sizes[i]
        boxes = self._boxes[size][shapes, variants]
        boxes[:, 2:] += boxes[:, :2]
        counts = self._counts[size][shapes, variants].tolist()
        return classes, scores.astype(np.float32), boxes, counts, SIZES[size]
