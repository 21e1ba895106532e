"""Training batches that depend only on the seed and the iteration, so a training can be resumed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..utils.seeding import seeded
from .dataset_records import DatasetRecords
from .sampling.bad_images import BadImageReplacer


class TrainLoader:
    """Endless batches of the images of a dataset, in the order of a sampler.

    The random numbers of a mapper depend on the seed and on the index of the image in the stream
    of all processes. So they are the same with any number of workers, and after a resume.

    Attributes:
        start: number of batches to skip. Their images are not loaded.
        dataset: the dataset dicts.
        mapper: maps them to inputs of the model, before a change of the images.
        batch_size: images of this process per batch.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        mapper: Callable[[dict], object],
        sampler: Iterable[int],
        *,
        batch_size: int,
        seed: int,
        max_bad_images: int = 0,
        change_images: Callable[[BadImageReplacer], Sequence[dict]] | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        collate_fn: Callable[[list], object] | None = None,
        **kwargs,
    ):
        """
        Args:
            dataset: detectron2 dataset dicts.
            mapper: maps a dataset dict to an input of the model, or to None to replace the image
                by another one, as :class:`BadImageReplacer` does.
            sampler: yields the indices of this process, without end; the same at each iteration.
            batch_size: see above.
            seed: seed >= 0 of the random numbers of the mapper.
            max_bad_images: see :class:`BadImageReplacer`.
            change_images: maps the samples of the dataset to others, whose random numbers depend on
                the seed and index in the same way. None: leave them.
            aspect_ratio_grouping: batch images in landscape format and others separately.
            num_workers: processes that load images.
            collate_fn: maps a list of inputs to a batch. None: the list.
            kwargs: further arguments of PyTorch's DataLoader.
        """
        self.start = 0
        self.dataset, self.mapper = dataset, mapper
        packed = isinstance(dataset, DatasetRecords)
        records = dataset if packed else DatasetFromList(dataset, copy=False)
        images = BadImageReplacer(records, mapper, max_bad_images, seed)
        self._images = _Images(images if change_images is None else change_images(images), seed)
        self._sampler = sampler
        self.batch_size = batch_size
        self._wide = None
        if aspect_ratio_grouping:
            heights, widths = (dataset.sizes if packed else _sizes(dataset)).T
            self._wide = widths > heights
        self._num_workers = num_workers
        self._collate = collate_fn
        self._kwargs = kwargs

    def __iter__(self) -> Iterator[list]:
        images = iter(
            DataLoader(
                self._images,
                batch_size=None,
                sampler=chain.from_iterable(islice(self._batches(), self.start, None)),
                num_workers=self._num_workers,
                collate_fn=_unchanged,
                generator=torch.Generator(),
                **self._kwargs,
            )
        )
        try:
            while batch := list(islice(images, self.batch_size)):
                yield batch if self._collate is None else self._collate(batch)
        finally:
            del images  # ends the workers; garbage collection would wait 5 seconds for each

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (index in the stream of all processes, index in the dataset)."""
        buckets = [], []
        for i, index in zip(count(comm.get_rank(), comm.get_world_size()), self._sampler):
            bucket = buckets[0 if self._wide is None else int(self._wide[index])]
            bucket.append((i, index))
            if len(bucket) == self.batch_size:
                yield bucket.copy()
                bucket.clear()


class _Images(Dataset):
    """Images of a dataset, by (index in the stream, index in the dataset)."""

    def __init__(self, images: Sequence[dict], seed: int):
        self._images = images
        self._seed = seed

    def __getitem__(self, item: tuple[int, int]):
        i, index = item
        with seeded(self._seed, 0, i):
            return self._images[index]


def _sizes(dataset: Sequence[dict]) -> np.ndarray:
    return np.array([(record["height"], record["width"]) for record in dataset]).reshape(-1, 2)


def _unchanged(image):
    return image
