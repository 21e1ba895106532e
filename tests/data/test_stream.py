"""The training stream: the same images and random numbers for any workers, processes and start."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader, samplers

from apa_det.data.stream import TrainLoader

DATASET = [
    {"image_id": i, "width": w, "height": 8} for i, w in enumerate([4, 9, 9, 4, 8, 9, 4, 5, 6, 9])
]


def draw(record):
    """A mapper with random numbers of every kind."""
    values = (random.random(), np.random.rand(), torch.rand(()).item())
    return {**record, "values": values}


def loader(mapper=draw, **kwargs):
    kwargs = {"batch_size": 3, "seed": 5, **kwargs}
    return TrainLoader(DATASET, mapper, samplers.TrainingSampler(len(DATASET), seed=1), **kwargs)


@pytest.mark.parametrize("grouping", [False, True])
def test_start_and_number_of_workers(grouping):
    expected = list(islice(loader(aspect_ratio_grouping=grouping), 12))
    assert len({image["values"] for batch in expected for image in batch}) == 36
    for num_workers in (0, 1, 3):
        resumed = loader(aspect_ratio_grouping=grouping, num_workers=num_workers)
        resumed.start = 5
        assert list(islice(resumed, 7)) == expected[5:]


def test_skipped_images_are_not_loaded():
    seen = []

    def record(image):
        seen.append(image["image_id"])
        return image

    stream = loader(record)
    stream.start = 1000
    (batch,) = islice(stream, 1)
    assert seen == [image["image_id"] for image in batch]


@pytest.mark.parametrize("grouping", [False, True])
def test_order_is_that_of_detectron2(grouping):
    theirs = build_detection_train_loader(
        DATASET,
        mapper=draw,
        sampler=samplers.TrainingSampler(len(DATASET), seed=1),
        total_batch_size=3,
        aspect_ratio_grouping=grouping,
    )
    for batch, expected in islice(
        zip(loader(aspect_ratio_grouping=grouping), theirs, strict=False), 20
    ):
        assert [r["image_id"] for r in batch] == [r["image_id"] for r in expected]


def test_processes_draw_different_random_numbers(monkeypatch):
    values = set()
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        values |= {image["values"] for batch in islice(loader(), 6) for image in batch}
    assert len(values) == 36


def test_seed():
    first, again, other = (next(iter(loader(seed=seed))) for seed in (5, 5, 6))
    assert first == again != other


def test_state_of_the_generators_is_unchanged():
    stream = iter(loader())
    outside = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for _ in range(3):
        next(stream)
    assert outside == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_images_that_the_mapper_rejects_are_replaced():
    def only_even(record):
        return draw(record) if record["image_id"] % 2 == 0 else None

    batches = list(islice(loader(only_even), 6))
    assert all(image["image_id"] % 2 == 0 for batch in batches for image in batch)
    resumed = loader(only_even, num_workers=2)
    resumed.start = 4
    assert list(islice(resumed, 2)) == batches[4:]


def test_collate():
    assert next(iter(loader(collate_fn=len))) == 3
