"""Replace images that cannot be read by others."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset

from ...errors import UserError

logger = logging.getLogger(__name__)

KEY = "INPUT.MAX_BAD_IMAGES (dataloader.train.max_bad_images in a LazyConfig)"


class BadImageReplacer(Dataset):
    """Maps a dataset, and replaces the images for which the mapper raises a UserError.

    The replacement of an image depends only on the seed and on its index, so it does not depend on
    the number of data workers. The workers of a process count together.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        mapper: Callable[[dict], dict],
        max_bad_images: int = 0,
        seed: int | None = None,
    ):
        """
        Args:
            dataset: the dataset dicts.
            mapper: returns the sample of a dataset dict, or None to skip it.
            max_bad_images: number of different images to replace; one more is an error.
            seed: not negative. None: 0.
        """
        self._dataset = dataset
        self._mapper = PicklableWrapper(mapper)
        self._max = max_bad_images
        self._seed = seed or 0
        self._bad = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict:
        """Return the sample of an image, or of its replacement.

        Raises:
            UserError: too many images are bad.
        """
        index = int(index)
        replacements = np.random.default_rng([self._seed, index])
        while True:
            try:
                sample = self._mapper(self._dataset[index])
            except UserError as error:
                self._count(index, error)
            else:
                if sample is not None:
                    return sample
            index = int(replacements.integers(len(self)))

    def apply(self, index: int, function: Callable[[dict], object]) -> object:
        """Return a function of a dataset dict; None, and count the image, if it is bad.

        Raises:
            UserError: too many images are bad.
        """
        try:
            return function(self._dataset[index])
        except UserError as error:
            self._count(index, error)
            return None

    def _count(self, index: int, error: UserError) -> None:
        if self._bad[index]:
            return
        self._bad[index] = True
        number = int(self._bad.sum())
        if not self._max:
            raise error
        if number > self._max:
            raise UserError(f"{error} {KEY} allows {self._max} such images.") from error
        logger.warning("%s Bad image %d of at most %d: replaced.", error, number, self._max)
