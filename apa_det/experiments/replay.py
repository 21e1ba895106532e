"""Training pictures that depend on the seed alone, whatever the model draws at random."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.utils.env import seed_all_rng
from tqdm import trange

__all__ = ["ReproducibleLoader"]


class ReproducibleLoader:
    """A training loader with random numbers of its own.

    The order of the pictures is drawn when a loader is built, after the model, and augmentations
    are drawn between its steps. So models that draw differently would see different pictures from
    the same seed. Here the sampler, the augmentations and the worker processes draw from a stream
    that nothing else draws from.

    Attributes:
        skip: batches to leave out at the start, those that a resumed training has seen.
        digest: of the pictures given so far: which they are, in which order, and where their
            objects are after augmentation. A resumed training sets it to what it was.
    """

    def __init__(self, build: Callable[[], Iterable[list[dict]]], seed: int):
        """
        Args:
            build: makes the loader.
            seed: of its random numbers.
        """
        self.skip = 0
        self.digest = ""
        outside = _state()
        seed_all_rng(seed)
        self._inside = _state()
        _set_state(outside)
        with self._own_random_numbers():
            self._loader = build()

    def __iter__(self) -> Iterator[list[dict]]:
        with self._own_random_numbers():
            batches = iter(self._loader)
        for _ in trange(self.skip, desc="Batches already seen", disable=not self.skip):
            self._next(batches)
        while True:
            batch = self._next(batches)
            self.digest = _digest(self.digest, batch)
            yield batch

    def _next(self, batches: Iterator[list[dict]]) -> list[dict]:
        with self._own_random_numbers():
            return next(batches)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        outside = _state()
        _set_state(self._inside)
        try:
            yield
        finally:
            self._inside = _state()
            _set_state(outside)


def _digest(before: str, batch: list[dict]) -> str:
    digest = hashlib.sha256(before.encode())
    for picture in batch:
        digest.update(f"{picture['image_id']} {tuple(picture['image'].shape)}".encode())
        if "instances" in picture:
            digest.update(picture["instances"].gt_boxes.tensor.numpy().tobytes())
    return digest.hexdigest()


def _state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_state(state: tuple) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
