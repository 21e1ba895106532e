"""Find the images and categories of a ground truth by name, for the results of the demo."""

import posixpath
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..data.faults import Fault, column
from ..data.image_names import relative_name
from ..text import listed, shown
from .ground_truth import GroundTruth

IMAGE_KEY, CATEGORY_KEY = "file_name", "category_name"


class TruthNames:
    """The names in a ground truth."""

    def __init__(self, truth: GroundTruth):
        self._images: dict[str, int] = {}
        self._by_last_part: dict[str, list[str]] = defaultdict(list)
        for index, image in enumerate(truth.images):
            if "file_name" in image or "coco_url" in image:
                name = _normal(relative_name(image))
                self._images[name] = index
                self._by_last_part[posixpath.basename(name)].append(name)
        self._categories = {name: i for i, name in enumerate(truth.category_names)}
        self._found: dict[str, int] = {}

    def images(self, paths: Sequence[str]) -> np.ndarray:
        """Return the index of the image of each path, int64.

        The file name of the ground truth must be the end of the path, as whole parts of it, and of
        several the longest one is taken. If there is none, the last part must be the same, and that
        of no other image.

        Raises:
            Fault: a path fits no image, or several.
        """
        return np.array([self._image(path) for path in paths], np.int64)

    def categories(self, names: Sequence[str]) -> np.ndarray:
        """Return the index of the category of each name, int64.

        Raises:
            Fault: there is no such category.
        """
        unknown = next((name for name in names if name not in self._categories), None)
        if unknown is not None:
            raise Fault(CATEGORY_KEY, f"must be a category of the ground truth, got {unknown!r}")
        return np.array([self._categories[name] for name in names], np.int64)

    def _image(self, path: str) -> int:
        if path not in self._found:
            self._found[path] = self._find(path)
        return self._found[path]

    def _find(self, path: str) -> int:
        if not isinstance(path, str):
            raise Fault(IMAGE_KEY, f"must be a path, got {shown(path)}")
        parts = _normal(path).split("/")
        for start in range(len(parts)):
            index = self._images.get("/".join(parts[start:]))
            if index is not None:
                return index
        names = self._by_last_part.get(parts[-1], [])
        if len(names) == 1:
            return self._images[names[0]]
        if names:
            text = f"must fit one image of the ground truth, got {shown(path)} for {listed(names)}"
            raise Fault(IMAGE_KEY, f"{text}; run the demo on the folder that contains theirs")
        raise Fault(
            IMAGE_KEY,
            f"must be that of an image of the ground truth, got {shown(path)}; run the demo on "
            "images of the ground truth",
        )


def are_by_name(record: object) -> bool:
    """Return whether the records of a file, given the first one, name images and categories."""
    return isinstance(record, dict) and {IMAGE_KEY, CATEGORY_KEY} <= record.keys()


def image_indices(names: TruthNames, records: Sequence[dict]) -> np.ndarray:
    """Return the index of the image of each record, by ``file_name``."""
    return names.images(column(records, IMAGE_KEY, "write it for all detections or for none"))


def category_indices(names: TruthNames, records: Sequence[dict]) -> np.ndarray:
    """Return the index of the category of each record, by ``category_name``."""
    return names.categories(
        column(records, CATEGORY_KEY, "write it for all detections or for none")
    )


def _normal(path: str) -> str:
    return posixpath.normpath(path.replace("\\", "/"))
