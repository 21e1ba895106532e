"""Models that draw differently see the same pictures, flipped alike."""

import random

import numpy as np
import pytest
import torch
from detectron2.utils.env import seed_all_rng

from apa_det.engine import Trainer
from apa_det.engine.setup.yaml import register_datasets
from apa_det.experiments import read_plan
from apa_det.experiments.train_run import ReproducibleTrainer


@pytest.fixture
def cfg(config_file, tmp_path):
    cfg = read_plan(tmp_path, configs=[config_file], seeds=[3]).runs[0].cfg
    register_datasets(cfg.DATASETS.LVIS_FORMAT, "DATASETS.LVIS_FORMAT")
    return cfg


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
def test_pictures_and_flips_do_not_depend_on_what_the_model_draws(cfg, num_workers):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = num_workers
    runs = []
    for amount in (0, 5):
        seed_all_rng(cfg.SEED)
        draw(amount)
        runs.append(seen(ReproducibleTrainer.build_train_loader(cfg), 12, amount))
    assert runs[0] == runs[1]
    by_picture = {}
    for image_id, columns in runs[0]:
        by_picture.setdefault(image_id, set()).add(tuple(columns))
    assert max(map(len, by_picture.values())) == 2  # some were flipped, some not


def test_detectron2s_own_loader_depends_on_it(cfg):
    runs = []
    for amount in (0, 5):
        seed_all_rng(cfg.SEED)
        draw(amount)
        runs.append(seen(Trainer.build_train_loader(cfg), 4, amount))
    assert runs[0] != runs[1]


def test_a_resumed_run_goes_on_with_the_pictures_that_it_has_not_seen(cfg):
    whole = seen(ReproducibleTrainer.build_train_loader(cfg), 10, 1)
    loader = ReproducibleTrainer.build_train_loader(cfg)
    loader.skip = 6
    assert seen(loader, 4, 1) == whole[6 * cfg.SOLVER.IMS_PER_BATCH :]


def test_outside_random_numbers_go_on_as_if_nothing_was_loaded(cfg):
    seed_all_rng(1)
    expected = np.random.rand(), torch.rand(1).item(), random.random()
    loader = ReproducibleTrainer.build_train_loader(cfg)
    seed_all_rng(1)
    batches = iter(loader)
    next(batches)
    assert (np.random.rand(), torch.rand(1).item(), random.random()) == expected
