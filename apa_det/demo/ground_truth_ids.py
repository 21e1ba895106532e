"""Image and category ids of a ground truth, for the results of the demo."""

import os
from collections.abc import Sequence
from dataclasses import replace

from ..data.faults import Fault
from ..errors import UserError
from ..evaluation import GroundTruth
from ..evaluation.names_in_results import TruthNames
from .predictor import Predictor


class GroundTruthIds:
    """The ids of a ground truth, by the file names of its images and the names of its categories.

    Args:
        json_file: in LVIS or COCO format.

    Raises:
        UserError: the file is missing or invalid.
    """

    def __init__(self, json_file: str | os.PathLike):
        self._json_file = json_file
        self._truth = GroundTruth.from_file(json_file)
        self._names = TruthNames(self._truth)

    def of_images(self, paths: Sequence[str]) -> list[int]:
        """Return the image ids of image files; see :meth:`TruthNames.images`.

        Raises:
            UserError: an image is not in the ground truth.
        """
        try:
            return self._truth.image_ids[self._names.images(paths)].tolist()
        except Fault as fault:
            raise UserError(f"{self._json_file}: {fault}.") from fault

    def set_categories(self, predictor: Predictor) -> None:
        """Replace the category ids of a predictor's classes.

        Raises:
            UserError: a class is not in the ground truth.
        """
        classes = predictor.classes
        try:
            indices = self._names.categories(classes.names)
        except Fault as fault:
            raise UserError(f"{self._json_file} lacks a class of the model: {fault}.") from fault
        predictor.classes = replace(classes, category_ids=self._truth.category_ids[indices])
