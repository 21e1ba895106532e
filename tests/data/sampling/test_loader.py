"""The training loader with each sampler, from a config and from plain arguments."""

import inspect
import itertools
import json
from functools import partial

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.structures import BoxMode

from apa_det import add_apa_config
from apa_det.data import build_train_loader, generate_dataset, register_lvis_format
from apa_det.data.sampling import TRAIN_SAMPLER_REGISTRY
from apa_det.data.sampling.loader import without_small
from apa_det.errors import UserError

NAME = "sampling_train"


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    generate_dataset(folder, num_train=30, num_val=1, num_classes=4, image_size=64)
    file = folder / "train.json"
    dataset = json.loads(file.read_text())
    for category, group in zip(dataset["categories"], "frcf", strict=True):
        category["frequency"] = group
    file.write_text(json.dumps(dataset))
    register_lvis_format(NAME, file, folder)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def config(sampler, seed=3):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    cfg.DATALOADER.FREQUENT_SHARE = 0.25
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = seed
    return cfg


def identity(record):
    return record


def order(loader, n=80):
    return [r["image_id"] for batch in itertools.islice(loader, n) for r in batch]


def seeded():
    np.random.seed(7)  # detectron2 draws shared random seeds from it


@pytest.mark.parametrize(
    "sampler",
    [
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ],
)
def test_order_of_detectron2_samplers(sampler, caplog):
    seeded_since_2025 = "TrainingSampler(len(dataset), seed=cfg.SEED)" in inspect.getsource(build)
    from_shared_seed = sampler == "RandomSubsetTrainingSampler" or (
        sampler == "TrainingSampler" and not seeded_since_2025
    )
    cfg = config(sampler, seed=-1 if from_shared_seed else 3)
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [[NAME, 2.5]]  # the key of the weighted samplers
    seeded()
    theirs = order(build_detection_train_loader(cfg, identity))
    seeded()
    with caplog.at_level("INFO"):
        assert order(build_train_loader(cfg, identity)) == theirs
    assert "contents of an epoch of" in caplog.text


@pytest.mark.parametrize("sampler", [name for name, _ in TRAIN_SAMPLER_REGISTRY])
def test_plain_arguments_match_config(sampler):
    expected = order(build_train_loader(config(sampler), identity))
    loader = build_train_loader(
        get_detection_dataset_dicts(NAME),
        sampler=sampler,
        repeat_thresh=0.4,
        subset_ratio=0.5,
        frequent_share=0.25,
        dataset_names=NAME,
        seed=3,
        mapper=identity,
        total_batch_size=2,
    )
    assert order(loader) == expected


def test_small_images_and_boxes(caplog):
    """As mmdetection: sides below the minimum, and boxes outside; given images are not changed."""

    def annotation(box, mode):
        return {"bbox": box, "bbox_mode": mode, "category_id": 0, "iscrowd": 0}

    xywh, xyxy = BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
    boxes = {
        "kept": ([2, 2, 1, 30], xywh),
        "kept too": ([2, 2, 3, 3], xyxy),
        "narrow": ([2, 2, 0.99, 30], xywh),
        "low": ([2, 2, 30, 2.5], xyxy),
        "right of the image": ([40, 2, 5, 5], xywh),
        "above the image": ([2, -9, 5, 9], xywh),
    }
    annotations = [annotation(*box) for box in boxes.values()]
    dataset = [
        {"image_id": i, "width": width, "height": height, "annotations": annotations}
        for i, (width, height) in enumerate([(40, 32), (31, 500), (32, 31)])
    ]
    dataset.append({**dataset[0], "image_id": 3, "annotations": annotations[2:]})
    with caplog.at_level("INFO"):
        result = without_small(dataset, 32, 1.0)
    assert [image["image_id"] for image in result] == [0, 3]  # 3 has lost all its boxes
    assert [len(image["annotations"]) for image in result] == [2, 0]
    assert all(len(image["annotations"]) in (4, 6) for image in dataset)
    assert "Left out 2 images with a side below 32, and 8 boxes" in caplog.text
    assert without_small(dataset) is dataset
    with pytest.raises(UserError, match="No training image has sides of 600 pixels"):
        without_small(dataset, 600)


@pytest.mark.parametrize("lazy", [False, True])
def test_small_images_are_not_drawn(lazy):
    if lazy:
        loader = partial(
            build_train_loader,
            get_detection_dataset_dicts(NAME),
            sampler="TrainingSampler",
            min_image_side=65,
            mapper=identity,
            total_batch_size=2,
        )
    else:
        cfg = config("TrainingSampler")
        cfg.DATALOADER.MIN_IMAGE_SIDE = 65
        loader = partial(build_train_loader, cfg, identity)
    with pytest.raises(UserError, match="No training image has sides of 65 pixels"):
        loader()


def test_log_of_epoch_contents(caplog):
    """The frequency groups are those of the file, not of the image counts."""
    metadata = MetadataCatalog.get(NAME)
    get_detection_dataset_dicts(NAME)
    counts = [c["image_count"] for c in metadata.class_image_count]
    cfg = config("TrainingSampler")
    with caplog.at_level("INFO"):
        build_train_loader(cfg, identity)
    (line,) = [r.getMessage() for r in caplog.records if "epoch of" in r.getMessage()]
    assert line.startswith("Expected contents of an epoch of TrainingSampler:")
    groups = metadata.class_frequency
    for name, group in (("rare", "r"), ("common", "c"), ("frequent", "f")):
        (row,) = [r.split() for r in line.splitlines() if r.split()[:1] == [name]]
        assert int(row[1]) == sum(g == group and n > 0 for g, n in zip(groups, counts, strict=True))
        assert row[1:4] == row[4:7]


def test_negative_seed_is_random():
    cfg = config("ClassAwareTrainingSampler", seed=-1)
    assert order(build_train_loader(cfg, identity)) != order(build_train_loader(cfg, identity))


def test_unknown_sampler():
    message = "DATALOADER.SAMPLER_TRAIN must be one of .*ClassAwareTrainingSampler.*got 'Balanced'"
    with pytest.raises(UserError, match=message):
        build_train_loader(config("Balanced"), identity)
    with pytest.raises(UserError, match="got 'WeightedTrainingSampler'"):
        build_train_loader(config("WeightedTrainingSampler"), identity)
    with pytest.raises(UserError, match="sampler must be one of .*got 'WeightedTrainingSampler'"):
        build_train_loader([{}], sampler="WeightedTrainingSampler", mapper=None, total_batch_size=1)
