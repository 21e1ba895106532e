"""A dataset in LVIS format of any size, up to that of LVIS v1 train, for the data benchmarks."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES, ANNOTATIONS, CLASSES = 100_170, 1_270_141, 1_203  # of LVIS v1 train
SIZES = ((480, 640), (427, 640), (640, 480))  # height, width
SHAPES = 2_000  # polygons per image size
FILES = 24  # image files per image size, which the images of the dataset share
_COORDINATES = (3.87, 0.85)  # of a mask: lognormal, mean 68 and median 48 as in LVIS


def write_dataset(folder: Path, num_images: int, seed: int = 0) -> Path:
    """Write a JSON file with the order of keys and records of LVIS v1, and its image files.

    The annotations per image, coordinates per mask and images per class are those of LVIS v1, the
    last by a power law. The same arguments give the same files.

    Args:
        folder: an existing folder.
        num_images: number of images; those of LVIS v1 train are 100,170.
        seed: of the random numbers.

    Returns:
        The path of the JSON file. File names are relative to ``folder``.
    """
    rng = np.random.default_rng(seed)
    number = round(ANNOTATIONS * num_images / IMAGES)
    sizes = rng.integers(len(SIZES), size=num_images)
    ids = np.sort(rng.permutation(6 * num_images)[:num_images]) + 1
    owners = np.sort(rng.permutation(rng.integers(num_images, size=number)))
    owners = owners[np.argsort(rng.random(num_images)[owners], kind="stable")]
    shares = 1 / np.arange(1, CLASSES + 1) ** 1.3
    classes = rng.permutation(CLASSES)[rng.choice(CLASSES, number, p=shares / shares.sum())] + 1
    classes[:CLASSES] = np.arange(1, CLASSES + 1)[:number]  # every class occurs
    shapes = [_shapes(rng, height, width) for height, width in SIZES]
    chosen = rng.integers(SHAPES, size=number).tolist()
    path = folder / "train.json"
    with path.open("w") as file:
        file.write('{"info": {"description": "generated", "version": "v1"}, "annotations": [')
        for i, (owner, label, shape) in enumerate(
            zip(owners.tolist(), classes.tolist(), chosen, strict=True), 1
        ):
            head = f'"category_id": {label}, "id": {i}, "image_id": {ids[owner]}'
            file.write(f"{', ' if i > 1 else ''}{{{shapes[sizes[owner]][shape]}, {head}}}")
        file.write('], "images": [')
        order = np.argsort(owners, kind="stable")
        first = np.searchsorted(owners[order], np.arange(1, num_images))
        positives = np.split(classes[order], first)
        names = rng.integers(FILES, size=num_images).tolist()
        for i, (size, name) in enumerate(zip(sizes.tolist(), names, strict=True)):
            negatives = np.setdiff1d(rng.integers(1, CLASSES + 1, 8), positives[i])
            image = {
                "date_captured": "2013-11-18 21:08:24",
                "neg_category_ids": negatives.tolist(),
                "license": 4,
                "height": SIZES[size][0],
                "width": SIZES[size][1],
                "flickr_url": "http://farm1.staticflickr.com/1/1234567890_0123456789_z.jpg",
                "coco_url": f"http://images.cocodataset.org/images/{size}_{name}.jpg",
                "not_exhaustive_category_ids": [],
                "id": int(ids[i]),
            }
            file.write(f"{', ' if i else ''}{json.dumps(image)}")
        pairs = np.unique(owners * CLASSES + classes - 1) % CLASSES
        counts = np.bincount(pairs, minlength=CLASSES).tolist()
        categories = [
            {
                "id": i,
                "name": f"class_{i}",
                "synonyms": [f"class_{i}"],
                "image_count": count,
                "instance_count": instances,
                "frequency": "r" if count <= 10 else "c" if count <= 100 else "f",
            }
            for i, (count, instances) in enumerate(
                zip(counts, np.bincount(classes - 1, minlength=CLASSES).tolist(), strict=True), 1
            )
        ]
        file.write(f'], "licenses": [], "categories": {json.dumps(categories)}}}')
    _write_images(folder / "images", rng)
    return path


def _shapes(rng: np.random.Generator, height: int, width: int) -> list[str]:
    """Return the bbox, area and segmentation of polygons, as JSON text."""
    texts = []
    for _ in range(SHAPES):
        points = max(3, round(rng.lognormal(*_COORDINATES) / 2))
        radius = rng.uniform(5, height / 3)
        angles = np.sort(rng.uniform(0, 2 * np.pi, points))
        lengths = radius * rng.uniform(0.6, 1, points)
        x = (rng.uniform(radius, width - radius) + lengths * np.cos(angles)).round(2)
        y = (rng.uniform(radius, height - radius) + lengths * np.sin(angles)).round(2)
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        record = {
            "area": round(area, 2),
            "segmentation": [np.stack([x, y], axis=1).reshape(-1).tolist()],
            "bbox": [round(float(v), 2) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))],
        }
        texts.append(json.dumps(record)[1:-1])
    return texts


def _write_images(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    for size, (height, width) in enumerate(SIZES):
        for name in range(FILES):
            coarse = Image.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(
                folder / f"{size}_{name}.jpg", quality=90
            )
