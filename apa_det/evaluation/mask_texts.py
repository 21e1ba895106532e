"""Reading ground truth in LVIS format, with polygons as text until masks are evaluated.

Polygons are most of such a file, and evaluating boxes does not need them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..data import read_lvis_json
from ..data.packed import from_hundredths
from ..data.polygon_text import Polygons, parse_polygons
from ..data.records import near
from ..data.validation import is_coco_format, read_coco_or_lvis_json, structure_problems
from ..utils.json_files import gc_paused, open_json

_KEY = "\x00polygons"  # of the records in memory, with the index of the mask
_PLACEHOLDER = json.dumps(_KEY)
_BLOCK = 4_000  # masks to parse at a time, for the cache of the CPU
_STARTS = ('"segmentation": [[', '"segmentation":[[')


class MaskTexts(Sequence):
    """The polygons of N annotations, parsed and checked when the first is needed."""

    def __init__(self, json_file: str | os.PathLike, texts: list[str], sizes: np.ndarray):
        """
        Args:
            json_file: the file in LVIS format.
            texts: the text of each mask, without its outer brackets.
            sizes: (N, 2) int64, height and width of the image of each mask.
        """
        self._file, self._texts, self._sizes = json_file, texts, sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> list[list[float]]:
        return self._masks[index]

    def __iter__(self) -> Iterator[list[list[float]]]:
        return iter(self._masks)

    @cached_property
    def _masks(self) -> "list | _Polygons":
        """
        Raises:
            UserError: a mask is invalid, see :func:`apa_det.data.read_lvis_json`.
        """
        texts, self._texts = self._texts, []
        parts = []
        for start in range(0, len(texts), _BLOCK):
            rows = slice(start, start + _BLOCK)
            polygons = parse_polygons(texts[rows])
            if polygons is None or not _are_valid(polygons, self._sizes[rows]):
                return [a["segmentation"] for a in read_lvis_json(self._file)["annotations"]]
            parts.append((polygons.points, polygons.lengths, polygons.numbers))
        points, lengths, numbers = map(np.concatenate, zip(*parts, strict=True))
        return _Polygons(points, _starts(lengths), _starts(numbers))


class Selected(Sequence):
    """Some rows of a sequence, without reading them."""

    def __init__(self, values: Sequence, rows: list[int]):
        self._values, self._rows = values, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int):
        return self._values[self._rows[index]]


class _Polygons:
    """The polygons of N masks in arrays."""

    def __init__(self, points: np.ndarray, polygons: np.ndarray, masks: np.ndarray):
        """
        Args:
            points: (B,) int32, all coordinates in hundredths of a pixel.
            polygons: (P + 1,) int64, where each polygon starts in ``points``.
            masks: (N + 1,) int64, where each mask starts in ``polygons``.
        """
        self._points, self._polygons, self._masks = points, polygons.tolist(), masks.tolist()

    def __getitem__(self, index: int) -> list[list[float]]:
        bounds = self._polygons[self._masks[index] : self._masks[index + 1] + 1]
        first = bounds[0]
        points = from_hundredths(self._points[first : bounds[-1]]).tolist()
        if len(bounds) == 2:
            return [points]
        return [points[start - first : end - first] for start, end in pairwise(bounds)]

    def __iter__(self) -> Iterator[list[list[float]]]:
        return map(self.__getitem__, range(len(self._masks) - 1))


def _are_valid(polygons: Polygons, sizes: np.ndarray) -> bool:
    lengths = polygons.lengths
    if (lengths < 6).any() or (lengths % 2).any():
        return False
    starts, sizes = _starts(lengths)[:-1] // 2, np.repeat(sizes, polygons.numbers, axis=0)
    return bool(near(from_hundredths(polygons.points), starts, sizes).all())


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@gc_paused()
def read_truth_json(json_file: str | os.PathLike) -> tuple[dict, MaskTexts | None]:
    """Read a file as :func:`apa_det.data.validation.read_coco_or_lvis_json` does.

    Returns:
        The dataset; and its masks, if they are polygons in LVIS format. The annotations have no
        ``segmentation`` then.

    Raises:
        MissingFileError, UserError: see :func:`apa_det.data.read_lvis_json`. Polygons are not
            checked yet.
    """
    with open_json(json_file) as (file, _):
        text = file.read()
    dataset, texts = _cut(text)
    del text
    if texts is None or next(structure_problems(dataset), None) is not None:
        return read_coco_or_lvis_json(json_file), None  # which names the problem, if there is one
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    sizes = np.array([sizes[a["image_id"]] for a in dataset["annotations"]], np.int64)
    return dataset, MaskTexts(json_file, texts, sizes)


def _cut(text: str) -> tuple[dict, list[str] | None]:
    """Return the dataset without its polygons, and their texts; None if they were not cut out."""
    if '"neg_category_ids"' not in text:  # COCO format
        return {}, None
    head, *parts = text.split(_STARTS[_STARTS[0] not in text])
    texts, rests = [], [head]
    for i, part in enumerate(parts):
        mask, end, rest = part.partition("]]")
        if not end:
            return {}, None
        texts.append(mask)
        rests.append(f"{_PLACEHOLDER}:{i}{rest}")
    try:
        dataset = json.loads("".join(rests))
    except (ValueError, RecursionError):
        return {}, None
    annotations = dataset.get("annotations") if isinstance(dataset, dict) else None
    if not texts or not isinstance(annotations, list) or is_coco_format(dataset):
        return {}, None
    if not all(type(a) is dict and "segmentation" not in a for a in annotations):
        return {}, None
    if [a.get(_KEY) for a in annotations] != [*range(len(texts))]:
        return {}, None  # some have no polygons, or polygons are elsewhere in the file
    return dataset, texts
