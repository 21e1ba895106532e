"""Random numbers that depend on a key, e.g. the seed and the iteration, not on what ran before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices.

    Args:
        key: integers >= 0. Different keys give independent random numbers; zeros at their end do
            not count.
    """
    torch.manual_seed(_seed_host(key))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Return a context with the random numbers of :func:`seed_all`, on the CPU only.

    The state of the generators before it is restored.
    """
    outside = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.default_generator.manual_seed(_seed_host(key))
    try:
        yield
    finally:
        random.setstate(outside[0])
        np.random.set_state(outside[1])
        torch.set_rng_state(outside[2])


def _seed_host(key: tuple[int, ...]) -> int:
    """Seed Python and NumPy, and return the seed for torch."""
    words = np.random.SeedSequence(key).generate_state(6, np.uint32)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4])
    return int(words[4:].view(np.uint64)[0])
