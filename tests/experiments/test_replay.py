"""Models that draw differently see the same pictures, flipped alike."""

import random

import numpy as np
import pytest
import torch
from detectron2.utils.env import seed_all_rng

from apa_det.experiments import ReproducibleLoader, read_plan


@pytest.fixture
def job(config_file, tmp_path):
    return read_plan(tmp_path, configs=[config_file], seeds=[3]).runs[0].job


def reproducible(job, num_workers=0):
    return ReproducibleLoader(lambda: job.build_train_loader(num_workers), job.seed)


def draw(amount):
    """What a model draws: when it is built, and in each step."""
    for _ in range(amount):
        torch.rand(7)
        np.random.rand(3)
        random.random()


def seen(loader, steps, amount):
    batches = iter(loader)
    result = []
    for _ in range(steps):
        draw(amount)
        for picture in next(batches):
            result.append((picture["image_id"], picture["image"].sum(dim=(0, 1)).tolist()))
    return result


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_and_flips_do_not_depend_on_what_the_model_draws(job, num_workers):
    runs = []
    for amount in (0, 5):
        seed_all_rng(job.seed)
        draw(amount)
        runs.append(seen(reproducible(job, num_workers), 12, amount))
    assert runs[0] == runs[1]
    by_picture = {}
    for image_id, columns in runs[0]:
        by_picture.setdefault(image_id, set()).add(tuple(columns))
    assert max(map(len, by_picture.values())) == 2  # some were flipped, some not


def test_detectron2s_own_loader_depends_on_it(job):
    runs = []
    for amount in (0, 5):
        seed_all_rng(job.seed)
        draw(amount)
        runs.append(seen(job.build_train_loader(), 4, amount))
    assert runs[0] != runs[1]


def test_a_resumed_run_goes_on_with_the_pictures_that_it_has_not_seen(job):
    whole = seen(reproducible(job), 10, 1)
    loader = reproducible(job)
    loader.skip = 6
    assert seen(loader, 4, 1) == whole[6 * job.batch_size :]


def test_outside_random_numbers_go_on_as_if_nothing_was_loaded(job):
    seed_all_rng(1)
    expected = np.random.rand(), torch.rand(1).item(), random.random()
    loader = reproducible(job)
    seed_all_rng(1)
    batches = iter(loader)
    next(batches)
    assert (np.random.rand(), torch.rand(1).item(), random.random()) == expected
