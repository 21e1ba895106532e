"""
Generate a small long-tailed dataset: LVIS JSON files and images.

Each class is a shape with a color and a mark. Class frequencies follow a Zipf-like tail, rare
classes look like frequent ones, and objects occlude each other. The annotations are federated as in
LVIS: in each image, some categories are verified negatives and some are not exhaustively annotated.
"""

import os
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from ...errors import UserError
from ...utils.atomic_files import writing
from ...utils.json_files import write_json
from ...utils.progress import track
from ..frequency import frequency_group
from .polygons import mask_to_polygons
from .shapes import (
    MAX_CLASSES,
    Appearance,
    are_look_alikes,
    choose_appearances,
    render_object,
)

_MAX_OBJECTS_PER_IMAGE = 6
_MAX_CLASSES_PER_IMAGE = 5
_MIN_OBJECT = 11  # pixels
_MIN_IMAGE_SIZE = 64


def generate_dataset(
    output_dir: str | os.PathLike,
    *,
    num_train: int = 600,
    num_val: int = 100,
    num_classes: int = 16,
    seed: int = 0,
    image_size: int = 160,
    mask_format: str = "polygon",
) -> dict[str, str]:
    """
    Write ``train.json``, ``val.json`` and the images ``train/*.jpg``, ``val/*.jpg``.

    Equal arguments give equal files. Every class occurs in train. In val all classes are about
    equally frequent, so that each can be measured; as in LVIS, its categories have the counts and
    frequencies of train. File names are relative to ``output_dir``, the image root of both splits.

    Args:
        output_dir: folder to write to; created if missing.
        num_train: number of train images. There are frequent classes from several hundred on.
        num_val: number of val images.
        num_classes: number of classes: at most 1536, and at most 5 per train image.
        seed: random seed. The classes depend only on ``seed`` and ``num_classes``.
        image_size: side of the square images in pixels, at least 64.
        mask_format: "polygon", or "rle" for compressed RLE.

    Returns:
        Paths of the JSON files, by split ("train" and "val").

    Raises:
        UserError: an argument is out of range, or the files cannot be written.
    """
    arguments = {
        "num_train": num_train,
        "num_val": num_val,
        "num_classes": num_classes,
        "seed": seed,
        "image_size": image_size,
        "mask_format": mask_format,
    }
    _check_arguments(**arguments)
    files = {split: os.path.join(output_dir, f"{split}.json") for split in ("train", "val")}
    for path in files.values():  # do not leave an old file beside new images
        if os.path.exists(path):
            os.remove(path)

    appearances = choose_appearances(num_classes, max(1, int(0.3 * num_classes)), seed)
    ranks = sorted(range(num_classes), key=lambda rank: appearances[rank].name)
    categories = {i: appearances[rank] for i, rank in enumerate(ranks, start=1)}
    tail = _tail(num_train, num_classes)
    plans = {
        "train": _plan(
            {i: tail[rank] for i, rank in enumerate(ranks, start=1)},
            num_train,
            np.random.default_rng([seed, 0]),
        ),
        "val": _plan(
            dict.fromkeys(categories, _val_image_count(num_val, num_classes)),
            num_val,
            np.random.default_rng([seed, 1]),
        ),
    }
    tables = {}
    for index, (split, plan) in enumerate(plans.items()):
        with writing(output_dir):
            os.makedirs(os.path.join(output_dir, split), exist_ok=True)
        images, annotations = [], []
        scenes = track(plan, f"Generating the {split} set", "images")
        for image_id, wanted in enumerate(scenes, start=1):
            rng = np.random.default_rng([seed, index, image_id])
            scene = _compose(wanted, categories, image_size, rng)
            file_name = f"{split}/{image_id:012d}.jpg"
            path = os.path.join(output_dir, file_name)
            with writing(path):
                Image.fromarray(scene.pixels).save(path, quality=90)
            images.append(_image_record(image_id, file_name, scene, categories, rng))
            for obj in scene.annotated():
                record = {"id": len(annotations) + 1, "image_id": image_id}
                mask = scene.owner == obj.index
                annotations.append(record | _annotation(obj.category_id, mask, mask_format))
        tables[split] = {"images": images, "annotations": annotations}

    info = {"description": "apa_det synthetic dataset", "arguments": arguments}
    records = _category_records(categories, tables["train"]["annotations"])
    for split, table in tables.items():
        write_json({"info": info, **table, "categories": records}, files[split])
    return files


def _check_arguments(num_train, num_val, num_classes, seed, image_size, mask_format) -> None:
    if min(num_train, num_val, num_classes) < 1:
        raise UserError(
            f"num_train, num_val and num_classes must be >= 1, got {num_train}, {num_val} and "
            f"{num_classes}."
        )
    if num_classes > MAX_CLASSES:
        raise UserError(f"num_classes must be <= {MAX_CLASSES}, got {num_classes}.")
    if num_classes > _MAX_CLASSES_PER_IMAGE * num_train:
        raise UserError(
            f"num_classes must be <= {_MAX_CLASSES_PER_IMAGE} * num_train, so that each class "
            f"occurs in train; got num_classes {num_classes} and num_train {num_train}."
        )
    if seed < 0:
        raise UserError(f"seed must be >= 0, got {seed}.")
    if image_size < _MIN_IMAGE_SIZE:
        raise UserError(f"image_size must be >= {_MIN_IMAGE_SIZE}, got {image_size}.")
    if mask_format not in ("polygon", "rle"):
        raise UserError(f"mask_format must be one of polygon, rle; got {mask_format!r}.")


def _tail(num_images: int, num_classes: int) -> list[int]:
    """
    Return image counts that fall from half of the images as exp(-c * (rank / last rank)^p).

    p is the largest value <= 1 with at most three classes per image on average: many classes have a
    longer, thinner tail.
    """
    most = max(1, num_images // 2)
    least = min(most, max(1, min(4, num_images // 100)))
    ranks = np.arange(num_classes) / max(1, num_classes - 1)
    for power in np.geomspace(1, 0.01, 100):
        counts = np.maximum(1, np.round(most * (least / most) ** (ranks**power)))
        if counts.sum() <= 3 * num_images:
            break
    return [int(count) for count in counts]


def _val_image_count(num_images: int, num_classes: int) -> int:
    """Return the images per class: for 3 classes per image, and at least 3 if they fit."""
    capacity = _MAX_CLASSES_PER_IMAGE * num_images // num_classes
    return min(num_images, max(1, min(capacity, max(3, 3 * num_images // num_classes))))


def _plan(
    counts: dict[int, int], num_images: int, rng: np.random.Generator
) -> list[dict[int, int]]:
    """Return for each image the number of objects to draw: ``{category id: number}``."""
    plan: list[dict[int, int]] = [{} for _ in range(num_images)]
    load = np.zeros(num_images)
    # First assign one image to each category, then the rest; rare categories first.
    rare_first = sorted(rng.permutation(list(counts)).tolist(), key=counts.get)
    rounds = [(i, 1) for i in rare_first] + [(i, counts[i] - 1) for i in rare_first]
    for category_id, number in rounds:
        # Prefer images with few classes. Random slack varies the number of classes per image.
        order = np.argsort(load + rng.uniform(0, 1.5, num_images)).tolist()
        free = [
            image
            for image in order
            if load[image] < _MAX_CLASSES_PER_IMAGE and category_id not in plan[image]
        ]
        for image in free[:number]:
            plan[image][category_id] = 1
            load[image] += 1
    for numbers in plan:
        wanted = int(rng.integers(2, _MAX_OBJECTS_PER_IMAGE + 1))
        while numbers and sum(numbers.values()) < wanted:
            numbers[int(rng.choice(list(numbers)))] += 1
    return plan


@dataclass
class _Object:
    index: int  # value in _Scene.owner
    category_id: int
    area: int  # pixels, before later objects occlude it
    annotated: bool = True


@dataclass
class _Scene:
    pixels: np.ndarray  # (S, S, 3), float32 while objects are drawn, then uint8
    owner: np.ndarray  # (S, S) int: index of the visible object at each pixel, -1 for none
    objects: list[_Object]

    def annotated(self) -> list[_Object]:
        return [obj for obj in self.objects if obj.annotated]


def _compose(
    wanted: dict[int, int],
    categories: dict[int, Appearance],
    size: int,
    rng: np.random.Generator,
) -> _Scene:
    canvas = _background(size, rng)
    scene = _Scene(canvas, np.full((size, size), -1), [])
    ids = [category_id for category_id, number in wanted.items() for _ in range(number)]
    for category_id in rng.permutation(ids):
        _add_object(scene, int(category_id), categories[int(category_id)], rng)
    # Sometimes leave one of several objects of a class without annotation.
    for category_id in sorted(wanted):
        same = [obj for obj in scene.objects if obj.category_id == category_id]
        if len(same) > 1 and rng.random() < 0.15:
            same[int(rng.integers(len(same)))].annotated = False
    noise = rng.normal(0, 5, canvas.shape)
    scene.pixels = np.clip(scene.pixels + noise, 0, 255).astype(np.uint8)
    return scene


def _add_object(
    scene: _Scene, category_id: int, appearance: Appearance, rng: np.random.Generator
) -> None:
    """Draw an object over the others at a position where enough of each stays visible."""
    size = scene.owner.shape[0]
    largest = np.log(0.62 * size)
    for _ in range(50):
        extent = np.exp(rng.uniform(np.log(_MIN_OBJECT), largest))
        largest = max(np.log(_MIN_OBJECT + 1), largest * 0.97)  # then try a smaller one
        color, coverage = render_object(appearance, extent, rng)
        height, width = coverage.shape
        if height > size or width > size:
            continue
        top = int(rng.integers(0, size - height + 1))
        left = int(rng.integers(0, size - width + 1))
        window = np.s_[top : top + height, left : left + width]
        mask = coverage >= 0.5
        owner = scene.owner[window].copy()
        owner[mask] = len(scene.objects)
        lost = Counter(scene.owner[window][mask].tolist())
        if all(_stays_visible(scene, obj, lost[obj.index]) for obj in scene.objects):
            break
    else:
        return
    scene.owner[window] = owner
    alpha = coverage[..., None]
    scene.pixels[window] = scene.pixels[window] * (1 - alpha) + color * alpha
    scene.objects.append(_Object(len(scene.objects), category_id, int(mask.sum())))


def _stays_visible(scene: _Scene, obj: _Object, lost: int) -> bool:
    if not lost:
        return True
    left = int((scene.owner == obj.index).sum()) - lost
    return left >= max(0.5 * obj.area, 40)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a muted gradient with soft blotches and a few thin lines: float32, (S, S, 3)."""
    corners = rng.uniform(60, 190, (2, 2, 1)) + rng.uniform(-25, 25, (2, 2, 3))
    blotches = rng.uniform(-22, 22, (8, 8, 1)) + rng.uniform(-10, 10, (8, 8, 3))
    canvas = sum(
        np.asarray(
            Image.fromarray(np.uint8(coarse + shift)).resize((size, size), Image.Resampling.BICUBIC)
        ).astype(np.float32)
        - shift
        for coarse, shift in ((corners, 0), (blotches, 64))
    )
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 7))):
        points = rng.uniform(0, size, 2) + np.cumsum(rng.normal(0, size / 12, (6, 2)), axis=0)
        color = tuple(int(value) for value in rng.integers(20, 236, 3))
        width = max(1, round(size / 160 * int(rng.integers(1, 4))))
        draw.line([tuple(point) for point in points.tolist()], fill=color, width=width)
    return np.asarray(image).astype(np.float32)


def _image_record(image_id, file_name, scene, categories, rng) -> dict:
    drawn = {obj.category_id for obj in scene.objects}
    absent = [i for i in categories if i not in drawn]
    # Negatives: some look-alikes of the drawn categories, and a few random ones.
    alike = [i for i in absent if any(are_look_alikes(categories[i], categories[j]) for j in drawn)]
    number = min(len(absent), max(2, min(12, len(categories) // 4)))
    negative = set(rng.permutation(alike)[: number // 2].tolist())
    for category_id in rng.permutation(absent).tolist():
        if len(negative) >= number:
            break
        negative.add(category_id)
    missed = {obj.category_id for obj in scene.objects if not obj.annotated}
    return {
        "id": image_id,
        "file_name": file_name,
        "height": scene.owner.shape[0],
        "width": scene.owner.shape[1],
        "neg_category_ids": sorted(int(i) for i in negative),
        "not_exhaustive_category_ids": sorted(missed),
    }


def _annotation(category_id: int, mask: np.ndarray, mask_format: str) -> dict:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    top, left = int(rows[0]), int(columns[0])
    width, height = int(columns[-1]) - left + 1, int(rows[-1]) - top + 1
    if mask_format == "rle":
        segmentation = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation["counts"] = segmentation["counts"].decode("ascii")
    else:
        segmentation = mask_to_polygons(mask)
    return {
        "category_id": category_id,
        "bbox": [left, top, width, height],
        "area": int(mask.sum()),
        "segmentation": segmentation,
    }


def _category_records(categories: dict[int, Appearance], annotations: list[dict]) -> list[dict]:
    instances = Counter(record["category_id"] for record in annotations)
    pairs = {(record["category_id"], record["image_id"]) for record in annotations}
    images = Counter(category_id for category_id, _ in pairs)
    return [
        {
            "id": category_id,
            "name": appearance.name,
            "image_count": images[category_id],
            "instance_count": instances[category_id],
            "frequency": frequency_group(images[category_id]),
        }
        for category_id, appearance in categories.items()
    ]
