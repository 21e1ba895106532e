"""
A small long-tailed dataset made on the spot: LVIS JSON files and pictures.

Each class is a shape with a colour and a mark. Frequent, common and rare classes follow a
Zipf-like tail, rare ones look like frequent ones, objects cover each other, and the annotations
are federated as LVIS's are: some categories are verified absent from a picture, some are not
exhaustively annotated, and of the others nothing is said.
"""

import os
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils
from tqdm import tqdm

from ...utils.json_files import write_json
from ..frequency import frequency_group
from .polygons import mask_to_polygons
from .shapes import (
    MAX_CLASSES,
    Appearance,
    are_look_alikes,
    choose_appearances,
    render_object,
)

_MAX_OBJECTS = 6  # in a picture
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
    Write ``train.json``, ``val.json`` and the pictures ``train/*.jpg``, ``val/*.jpg``.

    The same arguments give the same files. Every class occurs in train. Val holds the classes in
    about equal numbers, so that each can be measured; its categories carry the counts and
    frequencies of train, as LVIS's do. File names are relative to ``output_dir``, which is thus
    the image root of both.

    Args:
        output_dir: folder to write to; made where it is missing.
        num_train: pictures in train; from several hundred on, it has frequent classes.
        num_val: pictures in val.
        num_classes: at most 1536, and 5 a train picture.
        seed: the classes depend on this and ``num_classes`` alone.
        image_size: side of the square pictures in pixels, at least 64.
        mask_format: "polygon", or "rle" for compressed RLE.

    Returns:
        The JSON files' paths by split: "train" and "val".

    Raises:
        ValueError: an argument is out of its range.
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
    for path in files.values():  # of an earlier dataset, whose pictures go now
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
        os.makedirs(os.path.join(output_dir, split), exist_ok=True)
        images, annotations = [], []
        for image_id, wanted in enumerate(tqdm(plan, f"synthetic {split}", delay=2), start=1):
            rng = np.random.default_rng([seed, index, image_id])
            scene = _compose(wanted, categories, image_size, rng)
            file_name = f"{split}/{image_id:012d}.jpg"
            Image.fromarray(scene.pixels).save(os.path.join(output_dir, file_name), quality=90)
            images.append(_image_record(image_id, file_name, scene, categories, rng))
            for thing in scene.annotated():
                record = {"id": len(annotations) + 1, "image_id": image_id}
                mask = scene.owner == thing.index
                annotations.append(record | _annotation(thing.category_id, mask, mask_format))
        tables[split] = {"images": images, "annotations": annotations}

    info = {"description": "apa_det synthetic dataset", "arguments": arguments}
    records = _category_records(categories, tables["train"]["annotations"])
    for split, table in tables.items():
        write_json({"info": info, **table, "categories": records}, files[split])
    return files


def _check_arguments(num_train, num_val, num_classes, seed, image_size, mask_format) -> None:
    if min(num_train, num_val, num_classes) < 1:
        raise ValueError(
            f"num_train, num_val and num_classes must be 1 or more, not {num_train}, {num_val} "
            f"and {num_classes}"
        )
    if num_classes > MAX_CLASSES:
        raise ValueError(f"num_classes must be at most {MAX_CLASSES}, not {num_classes}")
    if num_classes > _MAX_CLASSES_PER_IMAGE * num_train:
        raise ValueError(
            f"num_classes must be at most {_MAX_CLASSES_PER_IMAGE} a train picture, so that each "
            f"class occurs there: {num_classes} are too many for num_train {num_train}"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    if image_size < _MIN_IMAGE_SIZE:
        raise ValueError(f"image_size must be at least {_MIN_IMAGE_SIZE}, not {image_size}")
    if mask_format not in ("polygon", "rle"):
        raise ValueError(f'mask_format must be "polygon" or "rle", not "{mask_format}"')


def _tail(num_images: int, num_classes: int) -> list[int]:
    """
    Image counts, falling from half the pictures by exp(-c * (rank / last rank)^p).

    p is 1 where three classes a picture allow it, and smaller (a longer, thinner tail) where there
    are many classes.
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
    """Pictures of each class: three classes a picture, and three pictures a class if they fit."""
    room = _MAX_CLASSES_PER_IMAGE * num_images // num_classes
    return min(num_images, max(1, min(room, max(3, 3 * num_images // num_classes))))


def _plan(
    counts: dict[int, int], num_images: int, rng: np.random.Generator
) -> list[dict[int, int]]:
    """For each picture, how many objects of each category to draw: ``{category id: number}``."""
    plan: list[dict[int, int]] = [{} for _ in range(num_images)]
    load = np.zeros(num_images)
    # First each category gets one picture, then each the rest, the rare ones before the frequent.
    rare_first = sorted(rng.permutation(list(counts)).tolist(), key=counts.get)
    rounds = [(i, 1) for i in rare_first] + [(i, counts[i] - 1) for i in rare_first]
    for category_id, number in rounds:
        # Among the emptiest pictures, by chance; half a class of slack varies the pictures.
        order = np.argsort(load + rng.uniform(0, 1.5, num_images)).tolist()
        free = [
            image
            for image in order
            if load[image] < _MAX_CLASSES_PER_IMAGE and category_id not in plan[image]
        ]
        for image in free[:number]:
            plan[image][category_id] = 1
            load[image] += 1
    for picture in plan:
        wanted = int(rng.integers(2, _MAX_OBJECTS + 1))
        while picture and sum(picture.values()) < wanted:
            picture[int(rng.choice(list(picture)))] += 1
    return plan


@dataclass
class _Thing:
    index: int  # its value in Scene.owner
    category_id: int
    area: int  # pixels, before later objects cover it
    annotated: bool = True


@dataclass
class _Scene:
    pixels: np.ndarray  # (S, S, 3), float32 while objects are drawn, then uint8
    owner: np.ndarray  # (S, S) int: index of the object seen at each pixel, -1 for none
    things: list[_Thing]

    def annotated(self) -> list[_Thing]:
        return [thing for thing in self.things if thing.annotated]


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
    # Now and then one of several objects of a class stays without annotation.
    for category_id in sorted(wanted):
        same = [thing for thing in scene.things if thing.category_id == category_id]
        if len(same) > 1 and rng.random() < 0.15:
            same[int(rng.integers(len(same)))].annotated = False
    noise = rng.normal(0, 5, canvas.shape)
    scene.pixels = np.clip(scene.pixels + noise, 0, 255).astype(np.uint8)
    return scene


def _add_object(
    scene: _Scene, category_id: int, appearance: Appearance, rng: np.random.Generator
) -> None:
    """Place an object over the others so that enough of each stays visible."""
    size = scene.owner.shape[0]
    largest = np.log(0.62 * size)
    for _ in range(50):
        extent = np.exp(rng.uniform(np.log(_MIN_OBJECT), largest))
        largest = max(np.log(_MIN_OBJECT + 1), largest * 0.97)  # no room: try a smaller one
        colour, coverage = render_object(appearance, extent, rng)
        height, width = coverage.shape
        if height > size or width > size:
            continue
        top = int(rng.integers(0, size - height + 1))
        left = int(rng.integers(0, size - width + 1))
        window = np.s_[top : top + height, left : left + width]
        mask = coverage >= 0.5
        owner = scene.owner[window].copy()
        owner[mask] = len(scene.things)
        lost = Counter(scene.owner[window][mask].tolist())
        if all(_stays_visible(scene, thing, lost[thing.index]) for thing in scene.things):
            break
    else:
        return
    scene.owner[window] = owner
    alpha = coverage[..., None]
    scene.pixels[window] = scene.pixels[window] * (1 - alpha) + colour * alpha
    scene.things.append(_Thing(len(scene.things), category_id, int(mask.sum())))


def _stays_visible(scene: _Scene, thing: _Thing, lost: int) -> bool:
    if not lost:
        return True
    left = int((scene.owner == thing.index).sum()) - lost
    return left >= max(0.5 * thing.area, 40)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A muted gradient with soft blotches and a few thin scribbles: (S, S, 3) float32."""
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
        colour = tuple(int(value) for value in rng.integers(20, 236, 3))
        width = max(1, round(size / 160 * int(rng.integers(1, 4))))
        draw.line([tuple(point) for point in points.tolist()], fill=colour, width=width)
    return np.asarray(image).astype(np.float32)


def _image_record(image_id, file_name, scene, categories, rng) -> dict:
    drawn = {thing.category_id for thing in scene.things}
    absent = [i for i in categories if i not in drawn]
    # Verified absent: some look-alikes of what is there, and a few at random.
    kin = [i for i in absent if any(are_look_alikes(categories[i], categories[j]) for j in drawn)]
    number = min(len(absent), max(2, min(12, len(categories) // 4)))
    negative = set(rng.permutation(kin)[: number // 2].tolist())
    for category_id in rng.permutation(absent).tolist():
        if len(negative) >= number:
            break
        negative.add(category_id)
    missed = {thing.category_id for thing in scene.things if not thing.annotated}
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
