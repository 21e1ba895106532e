"""Check of a whole dataset: all problems, and statistics by frequency group."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
from tabulate import tabulate

from ..errors import UserError
from ..text import shown
from ..utils.json_files import gc_paused, read_json
from ..utils.progress import heartbeat
from .box_hints import BoxHints
from .coco_to_lvis import crowd_note
from .frequency import COMMON_MAX, FREQUENCY_LABELS, RARE_MAX, complete_categories
from .image_files import ImageFile, check_image_files
from .image_names import relative_file_name
from .validation import (
    CONVERT,
    ID_LISTS,
    Problem,
    describe,
    has_file_name,
    index_by_id,
    is_coco_format,
    structure_problems,
    table_of,
)

_MAX_LINES = 10  # to print of each kind of problem


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
    groups: dict[str, GroupCounts]  # by "r", "c", "f"
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)  # what is no problem, but good to know

    def total(self) -> GroupCounts:
        """Return the statistics of all groups together."""
        groups = self.groups.values()
        return GroupCounts(
            classes=sum(group.classes for group in groups),
            unseen=sum(group.unseen for group in groups),
            images=self.num_images,
            instances=sum(group.instances for group in groups),
        )

    def summary(self) -> dict:
        """Return the statistics and all problems as a JSON-serializable dict."""
        problems = [
            {
                "kind": problem.kind,
                "message": problem.message,
                "table": problem.record and problem.record[0],
                "index": problem.record and problem.record[1],
            }
            for problem in self.problems
        ]
        return {
            "json_file": self.json_file,
            "images": self.num_images,
            "images_without_annotations": self.num_empty_images,
            "annotations": self.num_annotations,
            "groups": {name: asdict(counts) for name, counts in self.groups.items()},
            "notes": self.notes,
            "problems": problems,
        }

    def __str__(self) -> str:
        rows = [
            [
                FREQUENCY_LABELS.get(group, group),
                counts.classes,
                counts.unseen,
                counts.images,
                counts.instances,
            ]
            for group, counts in {**self.groups, "all": self.total()}.items()
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
            lines = [f"{kind}: {len(messages):,}", *(f"  {m}" for m in messages[:_MAX_LINES])]
            if len(messages) > _MAX_LINES:
                lines.append(f"  ... and {len(messages) - _MAX_LINES:,} more")
            parts.append("\n".join(lines))
        parts += self.notes
        parts.append(f"Problems: {len(self.problems):,}")
        return "\n\n".join(parts)


@heartbeat("Checking the dataset")
@gc_paused()
def check_dataset(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    rare_max: int = RARE_MAX,
    common_max: int = COMMON_MAX,
    allow_outside_root: bool = False,
) -> DatasetReport:
    """
    Collect all problems and statistics of a dataset in LVIS format.

    A file in COCO format is one problem, besides those that it has in COCO format.

    These are errors in training, too: the errors of :func:`read_lvis_json`, and image files that
    are missing, cannot be read, have another size than annotated or are outside ``image_root``.

    These are suspicious: boxes that are empty, outside their image, or look like corners or
    fractions; masks without area; unknown categories in ``neg_category_ids`` or
    ``not_exhaustive_category_ids``; categories that are both annotated in an image and among its
    negatives; and a dataset without annotations.

    Args:
        json_file: LVIS-format annotations.
        image_root: folder that file names are relative to.
        rare_max: largest image count of a rare category; unused if ``frequency`` is given.
        common_max: the same for a common category.
        allow_outside_root: image files outside ``image_root`` are no problem.

    Raises:
        MissingFileError: the JSON file does not exist.
        UserError: the file is not JSON.
    """
    dataset = read_json(json_file)
    coco = is_coco_format(dataset)
    problems = list(structure_problems(dataset, coco=coco))
    broken = {problem.record for problem in problems}
    rows = {
        table: [i for i in range(len(table_of(dataset, table))) if (table, i) not in broken]
        for table in ("images", "annotations", "categories")
    }
    valid = {table: [dataset[table][i] for i in indices] for table, indices in rows.items()}
    notes: list[str] = []
    if coco:
        problems.append(Problem("not in LVIS format", f"no image has {ID_LISTS[0]}: {CONVERT}"))
        singles = [i for i, a in enumerate(valid["annotations"]) if not a.get("iscrowd")]
        if len(singles) < len(valid["annotations"]):
            notes.append(f"It has {crowd_note(len(valid['annotations']) - len(singles))}")
        rows["annotations"] = [rows["annotations"][i] for i in singles]
        valid["annotations"] = [valid["annotations"][i] for i in singles]
    problems += _annotation_problems(valid, rows["annotations"])
    problems += _category_list_problems(valid, rows["images"], index_by_id(dataset, "categories"))
    problems += _image_file_problems(dataset, image_root, allow_outside_root, notes)
    complete_categories(valid, rare_max, common_max)
    return DatasetReport(
        json_file=os.fspath(json_file),
        num_images=len(table_of(dataset, "images")),
        num_empty_images=len(
            {image["id"] for image in valid["images"]}
            - {annotation["image_id"] for annotation in valid["annotations"]}
        ),
        num_annotations=len(table_of(dataset, "annotations")),
        groups=_count_groups(valid),
        problems=problems,
        notes=notes,
    )


def _annotation_problems(valid: dict, rows: list[int]) -> Iterator[Problem]:
    if not valid["annotations"]:
        yield Problem("no annotations", "the dataset has no valid annotations: add them")
    sizes = {image["id"]: (image["height"], image["width"]) for image in valid["images"]}
    boxed = [annotation for annotation in valid["annotations"] if annotation["image_id"] in sizes]
    hints = BoxHints()
    hints.add(
        np.array([a["bbox"] for a in boxed], np.float64).reshape(-1, 4),
        np.array([sizes[a["image_id"]] for a in boxed], np.float64).reshape(-1, 2),
    )
    if hints.hint():
        yield Problem("boxes in another format", hints.hint())
    for row, annotation in zip(rows, valid["annotations"], strict=True):
        who, record = f"annotation {annotation['id']}", ("annotations", row)
        x, y, width, height = box = annotation["bbox"]
        bottom, right = sizes.get(annotation["image_id"], (np.inf, np.inf))
        if width <= 0 or height <= 0:
            text = f"{who} has the bbox {box}, without area: remove it"
            yield Problem("empty box", text, record)
        elif x < -1 or y < -1 or x + width > right + 1 or y + height > bottom + 1:
            text = f"{who} has the bbox {box} in an image of {right} x {bottom}: clip it"
            yield Problem("box outside its image", text, record)
        elif annotation.get("area") == 0:
            text = f"{who} has the area {annotation['area']}: remove it"
            yield Problem("empty mask", text, record)


def _category_list_problems(
    valid: dict, rows: list[int], known: dict[int, dict]
) -> Iterator[Problem]:
    present = defaultdict(set)
    for annotation in valid["annotations"]:
        present[annotation["image_id"]].add(annotation["category_id"])
    for row, image in zip(rows, valid["images"], strict=True):
        record = "images", row
        for key in ID_LISTS:
            unknown = [i for i in image.get(key, ()) if i not in known]
            if unknown:
                yield Problem(
                    f"unknown category in {key}",
                    f"image {image['id']} has {shown(unknown)} in {key}, which are not category "
                    "ids: remove them",
                    record,
                )
        negative = {i for i in image.get("neg_category_ids", ()) if i in known}
        both = present[image["id"]] & negative
        if both:
            yield Problem(
                "annotated category in neg_category_ids",
                f"image {image['id']} has instances of {shown(sorted(both))}, which are also in "
                "its neg_category_ids: remove them there",
                record,
            )


def _image_file_problems(
    dataset, image_root: str | os.PathLike, allow_outside_root: bool, notes: list[str]
) -> Iterator[Problem]:
    records, files = [], []
    for index, image in enumerate(table_of(dataset, "images")):
        if not has_file_name(image):
            continue
        who, record = describe("image", image, index), ("images", index)
        try:
            name = relative_file_name({"id": None} | image, allow_outside_root=allow_outside_root)
        except UserError as error:
            yield Problem("image file outside the image root", str(error), record)
            continue
        width, height = image.get("width"), image.get("height")
        known = type(width) is int and type(height) is int
        files.append(ImageFile(os.path.join(image_root, name), (width, height) if known else None))
        records.append((who, record))
    rotated, sixteen_bits = 0, 0
    for (who, record), result in zip(records, check_image_files(files), strict=True):
        rotated += result.rotated
        sixteen_bits += result.sixteen_bits
        for kind, text in result.problems:
            yield Problem(kind, f"{who}: {text}", record)
    if rotated:
        notes.append(
            f"{rotated:,} images are rotated or flipped by their EXIF data, which training and "
            "evaluation apply: annotations must refer to the rotated images."
        )
    if sixteen_bits:
        notes.append(
            f"{sixteen_bits:,} images have 16 bits per pixel, which training and evaluation divide "
            "by 257 to 8 bits."
        )


def _count_groups(valid: dict) -> dict[str, GroupCounts]:
    group_of = {category["id"]: category["frequency"] for category in valid["categories"]}
    seen, images, instances = (defaultdict(set), defaultdict(set), defaultdict(int))
    for annotation in valid["annotations"]:
        group = group_of.get(annotation["category_id"])
        seen[group].add(annotation["category_id"])
        images[group].add(annotation["image_id"])
        instances[group] += 1
    sizes = {group: list(group_of.values()).count(group) for group in FREQUENCY_LABELS}
    return {
        group: GroupCounts(
            classes=sizes[group],
            unseen=sizes[group] - len(seen[group]),
            images=len(images[group]),
            instances=instances[group],
        )
        for group in FREQUENCY_LABELS
    }
