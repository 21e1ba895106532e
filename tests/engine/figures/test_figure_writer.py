"""Trainings that draw their figures, by yaml configs and LazyConfigs."""

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from apa_det.engine import setup_job, train
from apa_det.engine.figures import image_figures
from apa_det.engine.step import StepTrainer

NAMES = ("labels.png", "train_batch.png", "results.png", "val_predictions.png")
PASTE = ("INPUT.COPY_PASTE.ENABLED", True, "INPUT.COPY_PASTE.PROB", 1.0)
YAML = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2, *PASTE)


@pytest.fixture
def run(monkeypatch):
    """Train; return the images that the model got, and its last weights."""

    def run(args, crash=None):
        images = []
        original = StepTrainer._backward

        def record(step, part, losses):
            images.extend(x["image"].clone() for x in part)
            if len(images) == crash:
                raise KeyboardInterrupt
            original(step, part, losses)

        with monkeypatch.context() as patch:
            patch.setattr(StepTrainer, "_backward", record)
            job = setup_job(args)
            if crash is None:
                train(job, resume=args.resume)
                final = os.path.join(job.output_dir, "model_final.pth")
                return images, torch.load(final, weights_only=False)["model"]
            with pytest.raises(KeyboardInterrupt):
                train(job)
            return images, {}

    return run


@pytest.fixture
def drawn(monkeypatch):
    """The images of the batches that are drawn."""
    images, draw = [], image_figures.draw_batch

    def record(batch, *args):
        images.extend(x["image"] for x in batch)
        return draw(batch, *args)

    monkeypatch.setattr(image_figures, "draw_batch", record)
    return images


def assert_same(images, others):
    assert len(images) == len(others)
    assert all(map(torch.equal, images, others))


def assert_figures(folder):
    for name in NAMES:
        with Image.open(folder / name) as image:
            assert len(np.unique(np.array(image.convert("RGB")).reshape(-1, 3), axis=0)) > 8


def test_same_training_stopped_and_resumed_with_figures(run, arguments, drawn, tmp_path):
    without, folder = tmp_path / "without", tmp_path / "with"
    images, expected = run(arguments(*YAML, "OUTPUT_DIR", without))
    assert not {*NAMES} & {*os.listdir(without)}
    options = (*YAML, "FIGURES", True, "OUTPUT_DIR", folder)
    first, _ = run(arguments(*options), crash=6)  # in the third iteration
    assert {*NAMES} - {*os.listdir(folder)} == {"val_predictions.png"}
    rest, weights = run(arguments(*options, resume=True))
    assert_same(images, [*first[:4], *rest])
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert_same(drawn, [*first[:2], *rest[:2]])  # at the start and after the resume
    assert_figures(folder)


def test_same_training_of_a_lazy_config_with_figures(run, lazy_arguments, drawn, tmp_path):
    folders = tmp_path / "without", tmp_path / "with"
    (images, expected), (others, weights) = (
        run(lazy_arguments("train.max_iter=1", f"train.output_dir={f}", f"train.figures={has}"))
        for f, has in zip(folders, (False, True), strict=True)
    )
    assert_same(images, others)
    assert_same(drawn, images)
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert_figures(folders[1])


def test_full_disk_is_one_warning(arguments, output, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (full if b.endswith("png") else replace)(a, b))
    results = train(setup_job(arguments("FIGURES", True, "MODEL.APA.LOG_PERIOD", 0)))
    assert results["bbox"] and (output / "model_final.pth").is_file()
    log = (output / "log.txt").read_text()
    assert log.count("is not drawn") == 4 and "Traceback" not in log
    for name in NAMES:
        assert f"{name} is not drawn: Cannot write {output / name}: No space left on device." in log
    assert not {*NAMES} & {*os.listdir(output)}


def test_bug_surfaces_after_the_training(arguments, output, monkeypatch):
    def bug(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(image_figures, "draw_batch", bug)
    with pytest.raises(ZeroDivisionError):
        train(setup_job(arguments("FIGURES", True)))
    log = (output / "log.txt").read_text()
    assert "train_batch.png is not drawn. The training goes on.\nTraceback" in log
    assert "Best segm/AP" in log and (output / "results.png").is_file()
    assert (output / "model_final.pth").is_file()
    assert "bbox/AP" in (output / "metrics.json").read_text().splitlines()[-1]
