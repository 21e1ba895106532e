"""Models that draw different amounts of random numbers see the same images and flips."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.utils.env import seed_all_rng

from apa_det.data import APADatasetMapper
from apa_det.experiments import ReproducibleLoader, read_plan


@pytest.fixture
def job(config_file, tmp_path):
    return read_plan(tmp_path, configs=[config_file], seeds=[3]).runs[0].job


def others_loader(job, num_workers=0):
    """Return detectron2's own loader."""
    records = get_detection_dataset_dicts(job.train_datasets)
    mapper = APADatasetMapper(job.config, is_train=True)
    options = {"total_batch_size": job.batch_size, "num_workers": num_workers}
    return build_detection_train_loader(records, mapper=mapper, **options)


def own_loader(job, num_workers=0):
    return job.build_train_loader(num_workers)


def reproducible(job, num_workers=0, build=own_loader):
    return ReproducibleLoader(lambda: build(job, num_workers), job.seed)


def draw(amount):
    """Draw random numbers as a model does when it is built and in each step."""
    for _ in range(amount):
        torch.rand(7)
        np.random.rand(3)
        random.random()


def seen(loader, steps, amount):
    batches = iter(loader)
    result = []
    for _ in range(steps):
        draw(amount)
        for record in next(batches):
            result.append((record["image_id"], record["image"].sum(dim=(0, 1)).tolist()))
    return result


@pytest.mark.parametrize("build", [own_loader, others_loader])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_and_flips_do_not_depend_on_the_model(job, num_workers, build):
    runs = []
    for amount in (0, 5):
        seed_all_rng(job.seed)
        draw(amount)
        runs.append(seen(reproducible(job, num_workers, build), 12, amount))
    assert runs[0] == runs[1]
    by_image = {}
    for image_id, columns in runs[0]:
        by_image.setdefault(image_id, set()).add(tuple(columns))
    assert max(map(len, by_image.values())) == 2  # some images appear flipped and not flipped


def test_other_loaders_depend_on_the_model(job):
    runs = []
    for amount in (0, 5):
        seed_all_rng(job.seed)
        draw(amount)
        runs.append(seen(others_loader(job), 4, amount))
    assert runs[0] != runs[1]


@pytest.mark.parametrize("build", [own_loader, others_loader])
def test_resumed_run_skips_the_images_that_it_has_seen(job, build):
    all_images = seen(reproducible(job, build=build), 10, 1)
    loader = reproducible(job, build=build)
    loader.skip = 6
    assert seen(loader, 4, 1) == all_images[6 * job.batch_size :]


def test_loading_leaves_the_random_state_unchanged(job):
    seed_all_rng(1)
    expected = np.random.rand(), torch.rand(1).item(), random.random()
    loader = reproducible(job)
    seed_all_rng(1)
    batches = iter(loader)
    next(batches)
    assert (np.random.rand(), torch.rand(1).item(), random.random()) == expected
