"""Images that cannot be read in training and evaluation: one sentence, and nothing is lost."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.utils import comm

from apa_det.data import APADatasetMapper
from apa_det.engine import Trainer, evaluate, setup_job, train
from apa_det.engine.loading import CheckedLoader, LoadingError, raise_in_all_processes
from apa_det.errors import UserError

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()
TRUNCATED = "Cannot read the image {}: image file is truncated"


@pytest.fixture
def damaged(tiny_dataset, tmp_path):
    """A copy of the tiny dataset whose files a test may damage, and overrides that use it."""
    folder = Path(shutil.copytree(tiny_dataset, tmp_path / "damaged"))
    number = next(NUMBERS)
    names = {split: f"{split}_{number}" for split in ("train", "val")}
    entries = [[name, f"{folder}/{split}.json", str(folder)] for split, name in names.items()]

    def in_order(seed=1):
        """Return the training images in the order of the first epoch."""
        records = get_detection_dataset_dicts(names["train"])
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))
        return [Path(records[i]["file_name"]) for i in order.tolist()]

    yaml = {
        "DATASETS.LVIS_FORMAT": entries,
        "DATASETS.TRAIN": (names["train"],),
        "DATASETS.TEST": (names["val"],),
        "SOLVER.CHECKPOINT_PERIOD": 1000,
        "SOLVER.MAX_ITER": 6,
    }
    lazy = {
        "dataloader.lvis_format": entries,
        "dataloader.train.dataset.names": names["train"],
        "dataloader.test.dataset.names": names["val"],
        "dataloader.train.sampler": "TrainingSampler",
        "train.checkpointer.period": 1000,
        "train.max_iter": 6,
    }
    return SimpleNamespace(
        in_order=in_order,
        test_images=sorted((folder / "val").iterdir()),
        yaml=[x for item in yaml.items() for x in item],
        lazy=[f"{key}={value}".replace(" ", "") for key, value in lazy.items()],
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def saved(output):
    return sorted(path.name for path in output.glob("model_*.pth"))


def test_truncated_image_in_training(damaged, arguments, output):
    """The last finished iteration is saved, and the training continues from there."""
    options = [*damaged.yaml, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 3]
    whole = output.parent / "whole"
    train(setup_job(arguments(*options, "OUTPUT_DIR", whole, "SOLVER.CHECKPOINT_PERIOD", 1)))
    image = damaged.in_order()[5]  # of the third batch
    content = image.read_bytes()
    truncate(image)
    with pytest.raises(LoadingError, match=f"^{TRUNCATED.format(image)}[^\n]*$"):
        train(setup_job(arguments(*options)))
    assert saved(output) == ["model_0000001.pth"]
    ours, expected = (
        torch.load(folder / "model_0000001.pth", weights_only=True) for folder in (output, whole)
    )
    assert ours["iteration"] == ours["trainer"]["iteration"] == 1
    for name, tensor in expected["model"].items():
        assert torch.equal(ours["model"][name], tensor), name
    assert "Fix the data and continue with --resume." in (output / "log.txt").read_text()

    image.write_bytes(content)
    trainer = Trainer(setup_job(arguments(*options, resume=True)).config)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    assert saved(output) == ["model_0000001.pth", "model_final.pth"]


@pytest.mark.parametrize("resume", [False, True])
def test_first_iteration(resume, damaged, arguments, output):
    """There is nothing to save, and a failed last iteration is not evaluated."""
    done = 1 if resume else 0
    if resume:
        train(setup_job(arguments(*damaged.yaml, "SOLVER.MAX_ITER", done)))
    before = saved(output)
    setup_job(arguments(*damaged.yaml))
    for image in sorted(damaged.in_order())[1:]:  # without the first one, loading fails
        image.unlink()
    options = (*damaged.yaml, "SOLVER.MAX_ITER", done + 1)
    with pytest.raises(LoadingError, match="There is no image .*jpg"):
        train(setup_job(arguments(*options, resume=resume)), resume=resume)
    assert saved(output) == before
    assert (output / "log.txt").read_text().count("Evaluation results for bbox") == resume


def test_lazy_config(damaged, lazy_arguments, output):
    options = [*damaged.lazy, "dataloader.train.num_workers=0", "dataloader.evaluator=null"]
    job = setup_job(lazy_arguments(*options))
    job.build_train_loader()
    truncate(damaged.in_order()[5])
    with pytest.raises(LoadingError, match=TRUNCATED.format(damaged.in_order()[5])):
        train(job)
    assert saved(output) == ["model_0000001.pth"]
    bad = "dataloader.train.max_bad_images=1"
    train(setup_job(lazy_arguments(*options, bad, resume=True)), resume=True)
    assert saved(output) == ["model_0000001.pth", "model_final.pth"]
    assert "Bad image 1 of at most 1: replaced." in (output / "log.txt").read_text()


def test_bad_images_of_a_yaml_config(damaged, arguments, output):
    setup_job(arguments(*damaged.yaml))
    truncate(damaged.in_order()[3])
    options = [*damaged.yaml, "DATASETS.TEST", (), "INPUT.MAX_BAD_IMAGES", 1]
    options += ["SOLVER.MAX_ITER", 2]
    train(setup_job(arguments(*options)))
    assert "Bad image 1 of at most 1: replaced." in (output / "log.txt").read_text()


def test_truncated_image_in_evaluation(damaged, arguments, output):
    """During training, a checkpoint is saved; later, the error names the image."""
    image = damaged.test_images[4]
    truncate(image)
    message = f"^{TRUNCATED.format(image)}[^\n]*$"
    options = [*damaged.yaml, "SOLVER.MAX_ITER", 3]
    with pytest.raises(LoadingError, match=message):
        train(setup_job(arguments(*options, "TEST.EVAL_PERIOD", 2)))
    assert saved(output) == ["model_0000001.pth"]
    with pytest.raises(LoadingError, match=message):
        train(setup_job(arguments(*options, resume=True)), resume=True)
    assert saved(output) == ["model_0000001.pth", "model_final.pth"]
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    with pytest.raises(LoadingError, match=message):
        evaluate(setup_job(arguments(*options, *weights, eval_only=True)))


def test_evaluation_of_a_lazy_config(damaged, lazy_arguments):
    truncate(damaged.test_images[0])
    job = setup_job(lazy_arguments(*damaged.lazy, "dataloader.test.num_workers=0"))
    with pytest.raises(LoadingError, match=TRUNCATED.format(damaged.test_images[0])):
        job.test(job.build_model())


def test_one_line_in_two_processes(damaged, arguments, output):
    """From the command line, with data workers; the other process does not wait."""
    setup_job(arguments(*damaged.yaml))
    image = damaged.in_order()[5]  # of the other process's third batch
    truncate(image)
    flags = [*damaged.yaml, "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 1]
    command = [sys.executable, ROOT / "tools/train_net.py", "--num-gpus", "2", "--dist-url", "auto"]
    done = subprocess.run(
        [*map(str, [*command, "--config-file", arguments().config_file, *flags])],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [s for s in done.stderr.splitlines() if s.startswith("train_net.py: ")]
    assert line.startswith(f"train_net.py: {TRUNCATED.format(image)}")
    assert "Traceback" not in done.stdout + done.stderr
    assert saved(output) == ["model_0000000.pth"]


def test_error_of_another_process(monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda message: [message, "x.png is broken.", "y"])
    with pytest.raises(LoadingError, match="^x.png is broken.$"):
        list(CheckedLoader(range(3)))
    with pytest.raises(LoadingError, match="^x.png is broken.$"):
        raise_in_all_processes(None)
    with pytest.raises(LoadingError, match="^z$"):
        raise_in_all_processes(UserError("z"))


def test_mappers_of_jobs(arguments, lazy_arguments, quickstart, tmp_path):
    """detectron2's own mapper of a LazyConfig is replaced; other mappers are kept."""
    job = setup_job(arguments())
    assert type(job.build_test_mapper()) is APADatasetMapper
    path = tmp_path / "own.py"
    path.write_text(
        "from detectron2.config import LazyConfig\n"
        "from detectron2.data import DatasetMapper\n"
        f"config = LazyConfig.load({quickstart.lazy!r})\n"
        "dataloader, model, optimizer = config.dataloader, config.model, config.optimizer\n"
        "lr_multiplier, train = config.lr_multiplier, config.train\n"
        "class Own(DatasetMapper):\n    pass\n"
        "dataloader.train.mapper._target_ = DatasetMapper\n"
        "dataloader.test.mapper._target_ = Own\n"
    )
    job = setup_job(lazy_arguments(config_file=str(path)))
    assert job.config.dataloader.train.mapper._target_ is APADatasetMapper
    mapper = job.build_test_mapper()
    assert type(mapper).__name__ == "Own" and isinstance(mapper, DatasetMapper)
