"""Check of a whole dataset: all problems, and statistics by frequency group."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from ..utils.json_files import read_json
from .frequency import COMMON_MAX, FREQUENCY_LABELS, RARE_MAX, complete_categories
from .lvis_format import relative_file_name
from .validation import Problem, index_by_id, structure_problems

_GROUPS = dict(reversed(FREQUENCY_LABELS.items()))
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class GroupCounts:
    """Statistics of a frequency group."""

    classes: int
    unseen: int  # classes without instances
    images: int  # images with an instance of the group
    instances: int


@dataclass(frozen=True)
class DatasetReport:
    """Result of :func:`check_dataset`. ``str()`` formats it as tables."""

    json_file: str
    num_images: int
    num_annotations: int
    num_empty_images: int  # valid images without annotations
    groups: dict[str, GroupCounts]  # by "f", "c", "r"
    problems: list[Problem]

    def __str__(self) -> str:
        rows = [
            [_GROUPS[group], counts.classes, counts.unseen, counts.images, counts.instances]
            for group, counts in self.groups.items()
        ]
        header = ["frequency", "classes", "without instances", "images", "instances"]
        parts = [
            f"{self.json_file}: {self.num_images:,} images ({self.num_empty_images:,} without "
            f"annotations), {self.num_annotations:,} annotations",
            tabulate(rows, headers=header, intfmt=","),
        ]
        kinds = defaultdict(list)
        for problem in self.problems:
            kinds[problem.kind].append(problem.message)
        for kind, messages in sorted(kinds.items(), key=lambda item: -len(item[1])):
            lines = [f"{kind}: {len(messages):,}", *(f"  {text}" for text in messages[:10])]
            if len(messages) > 10:
                lines.append(f"  ... and {len(messages) - 10:,} more")
            parts.append("\n".join(lines))
        parts.append(f"Problems: {len(self.problems):,}")
        return "\n\n".join(parts)


def check_dataset(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    rare_max: int = RARE_MAX,
    common_max: int = COMMON_MAX,
) -> DatasetReport:
    """
    Collect all problems and statistics of a dataset in LVIS format.

    Besides the errors of :func:`read_lvis_json`, these are problems: image files that are missing,
    unreadable or have another size than annotated; boxes that are empty or outside their image;
    polygons with values that are not finite numbers; unknown categories in ``neg_category_ids`` or
    ``not_exhaustive_category_ids``; and categories that are both annotated in an image and among
    its negatives.

    Args:
        json_file: LVIS-format annotations.
        image_root: folder that file names are relative to.
        rare_max: largest image count of a rare category; unused if ``frequency`` is given.
        common_max: the same for a common category.

    Raises:
        MissingFileError: the JSON file does not exist.
        UserError: the file is not JSON.
    """
    dataset = read_json(json_file)
    problems = list(structure_problems(dataset))
    valid = _valid_records(dataset, problems)
    problems += _annotation_problems(valid)
    problems += _category_list_problems(valid, index_by_id(dataset, "categories"))
    problems += _image_file_problems(valid["images"], image_root)
    complete_categories(valid, rare_max, common_max)
    return DatasetReport(
        json_file=os.fspath(json_file),
        num_images=_length(dataset, "images"),
        num_empty_images=len(
            {image["id"] for image in valid["images"]}
            - {annotation["image_id"] for annotation in valid["annotations"]}
        ),
        num_annotations=_length(dataset, "annotations"),
        groups=_count_groups(valid),
        problems=problems,
    )


def _length(dataset, table: str) -> int:
    records = dataset.get(table) if isinstance(dataset, dict) else None
    return len(records) if isinstance(records, list) else 0


def _valid_records(dataset, problems: list[Problem]) -> dict[str, list[dict]]:
    broken = {problem.record for problem in problems}
    tables = {}
    for table in ("images", "annotations", "categories"):
        records = dataset.get(table) if isinstance(dataset, dict) else None
        tables[table] = [
            record
            for index, record in enumerate(records if isinstance(records, list) else ())
            if (table, index) not in broken
        ]
    return tables


def _annotation_problems(valid: dict) -> Iterator[Problem]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in valid["images"]}
    for annotation in valid["annotations"]:
        who = f"annotation {annotation['id']}"
        x, y, width, height = box = annotation["bbox"]
        right, bottom = sizes.get(annotation["image_id"], (math.inf, math.inf))
        if width <= 0 or height <= 0:
            yield Problem("empty box", f"{who} has the bbox {box}, without area: remove it")
        elif x < -1 or y < -1 or x + width > right + 1 or y + height > bottom + 1:
            yield Problem(
                "box outside its image",
                f"{who} has the bbox {box} in an image of {right} x {bottom}: clip it",
            )
        elif annotation["area"] <= 0:
            yield Problem("empty mask", f"{who} has the area {annotation['area']}: remove it")
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list) and not all(map(_is_finite, segmentation)):
            yield Problem(
                "invalid segmentation",
                f"{who} has a polygon with values that are not finite numbers: recreate the mask",
            )


def _is_finite(polygon: list) -> bool:
    try:
        return math.isfinite(math.fsum(polygon))
    except (TypeError, ValueError, OverflowError):
        return False


def _category_list_problems(valid: dict, known: dict[int, dict]) -> Iterator[Problem]:
    present = defaultdict(set)
    for annotation in valid["annotations"]:
        present[annotation["image_id"]].add(annotation["category_id"])
    for image in valid["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            unknown = [i for i in image[key] if type(i) is not int or i not in known]
            if unknown:
                yield Problem(
                    f"unknown category in {key}",
                    f"image {image['id']} has {unknown} in {key}, which are not category ids: "
                    "remove them",
                )
        both = present[image["id"]].intersection(i for i in image["neg_category_ids"] if i in known)
        if both:
            yield Problem(
                "annotated category in neg_category_ids",
                f"image {image['id']} has instances of {sorted(both)}, which are also in its "
                "neg_category_ids: remove them there",
            )


def _image_file_problems(images: list[dict], image_root: str | os.PathLike) -> Iterator[Problem]:
    for image in tqdm(images, desc="images", delay=2):
        path = os.path.join(image_root, relative_file_name(image))
        try:
            if not PathManager.isfile(path):
                yield Problem("missing image file", f"image {image['id']}: {path} does not exist")
                continue
            with PathManager.open(path, "rb") as file, Image.open(file) as pil_image:
                width, height = pil_image.size
                if pil_image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:  # rotated by 90 degrees
                    width, height = height, width
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's errors for corrupt files
            yield Problem("unreadable image file", f"image {image['id']}: {path}: {error}")
            continue
        if (width, height) != (image["width"], image["height"]):
            yield Problem(
                "wrong image size",
                f"image {image['id']}: {path} is {width} x {height}, but annotated as "
                f"{image['width']} x {image['height']}",
            )


def _count_groups(valid: dict) -> dict[str, GroupCounts]:
    group_of = {category["id"]: category["frequency"] for category in valid["categories"]}
    seen, images, instances = (defaultdict(set), defaultdict(set), defaultdict(int))
    for annotation in valid["annotations"]:
        group = group_of.get(annotation["category_id"])
        seen[group].add(annotation["category_id"])
        images[group].add(annotation["image_id"])
        instances[group] += 1
    sizes = {group: list(group_of.values()).count(group) for group in _GROUPS}
    return {
        group: GroupCounts(
            classes=sizes[group],
            unseen=sizes[group] - len(seen[group]),
            images=len(images[group]),
            instances=instances[group],
        )
        for group in _GROUPS
    }
