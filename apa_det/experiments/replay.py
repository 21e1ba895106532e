"""Training images that depend on the seed only, not on random numbers drawn by the model."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.utils.env import seed_all_rng

from ..data.stream import TrainLoader
from ..utils.progress import track


class ReproducibleLoader:
    """A training loader with its own random number generators.

    For loaders other than :class:`apa_det.data.stream.TrainLoader`: they draw the order of the
    images when they are built, after the model, and augmentations between training steps. So with
    one seed, models that draw different amounts of random numbers would see different images. Here
    the sampler, the augmentations and the worker processes use a separate random state.

    Attributes:
        skip: number of batches to skip at the start, those that a resumed training has seen.
        digest: hash of the images yielded so far: their ids, order, sizes and augmented boxes. A
            resumed training restores it.
    """

    def __init__(self, build: Callable[[], Iterable[list[dict]]], seed: int):
        """
        Args:
            build: builds the loader.
            seed: the seed of the random state.
        """
        self.skip = 0
        self.digest = ""
        outside = _state()
        seed_all_rng(seed)
        self._inside = _state()
        _set_state(outside)
        with self._own_random_state():
            self._loader = build()

    def __iter__(self) -> Iterator[list[dict]]:
        skip = self.skip
        if isinstance(self._loader, TrainLoader):
            self._loader.start, skip = skip, 0
        with self._own_random_state():
            batches = iter(self._loader)
        for _ in track(range(skip), "Skipping batches already seen", "batches"):
            self._next(batches)
        while True:
            batch = self._next(batches)
            self.digest = _digest(self.digest, batch)
            yield batch

    def _next(self, batches: Iterator[list[dict]]) -> list[dict]:
        with self._own_random_state():
            return next(batches)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        outside = _state()
        _set_state(self._inside)
        try:
            yield
        finally:
            self._inside = _state()
            _set_state(outside)


def _digest(previous: str, batch: list[dict]) -> str:
    digest = hashlib.sha256(previous.encode())
    for record in batch:
        digest.update(f"{record['image_id']} {tuple(record['image'].shape)}".encode())
        if "instances" in record:
            digest.update(record["instances"].gt_boxes.tensor.numpy().tobytes())
    return digest.hexdigest()


def _state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_state(state: tuple) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
