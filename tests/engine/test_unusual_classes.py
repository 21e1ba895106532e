"""Training and evaluation with unusual classes: their number, ids, names and instances."""

import json
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from apa_det.data import check_dataset
from apa_det.engine import evaluate, setup_job, train
from apa_det.errors import UserError

from ..conftest import TINY_CONFIG, flat, training_flags
from .table_detector import relabeled, write


def extra(dataset, names):
    first = max(category["id"] for category in dataset["categories"]) + 1
    counts = {"image_count": 0, "instance_count": 0, "frequency": "r"}
    dataset["categories"] += [
        {"id": i, "name": name, **counts} for i, name in enumerate(names, start=first)
    ]
    return dataset


def last_ones_absent(dataset, names):
    return extra(dataset, ["last", "very last"])


def images_without_annotations(dataset, names):
    empty = {image["id"] for image in dataset["images"][::2]}
    dataset["annotations"] = [a for a in dataset["annotations"] if a["image_id"] not in empty]
    return dataset


def one_class(dataset, names):
    return relabeled(dataset, {names[0]: 1})


def many_classes(dataset, names):
    dataset["images"] = dataset["images"][:2]  # their NMS takes time
    kept = {image["id"] for image in dataset["images"]}
    dataset["annotations"] = [a for a in dataset["annotations"] if a["image_id"] in kept]
    return extra(dataset, [f"class {i}" for i in range(12_996)])


def any_ids(dataset, names):
    return relabeled(dataset, dict(zip(names, [2**63 - 1, 0, -(2**63), 77], strict=True)))


def any_names(dataset, names):
    new = ["", " dog,  cat: 'x'", "Ωμέγα 犬 🐕", "${a} %s {} \\"]
    rename = dict(zip(names, new, strict=True))
    return relabeled(dataset, {name: i for i, name in enumerate(names)}, rename)


@pytest.fixture
def flags(tiny_dataset, tmp_path):
    """Make the training flags of the tiny config on datasets made by a function."""

    def make(change, *opts, **kwargs):
        entries = []
        for split in ("train", "val"):
            dataset = json.loads((tiny_dataset / f"{split}.json").read_text())
            categories = sorted(dataset["categories"], key=lambda c: c["id"])
            path = write(
                tmp_path / f"{split}.json", change(dataset, [c["name"] for c in categories])
            )
            entries.append([f"unusual_{split}", path, str(tiny_dataset)])
        text = re.sub(" *NUM_CLASSES: 4\n", "", TINY_CONFIG.format(datasets=entries))
        text = text.replace("tiny_", "unusual_").replace("unusual_dataset", "tiny_dataset")
        config = tmp_path / "config.yaml"
        config.write_text(f"{text}\nOUTPUT_DIR: {tmp_path / 'output'}\n")
        return training_flags(config, *opts, **kwargs)

    yield make
    for split in ("train", "val"):
        if f"unusual_{split}" in DatasetCatalog.list():
            DatasetCatalog.remove(f"unusual_{split}")
            MetadataCatalog.remove(f"unusual_{split}")


@pytest.mark.parametrize(
    "change, sampler",
    [
        (last_ones_absent, "RepeatFactorTrainingSampler"),
        (images_without_annotations, "InstanceAwareRepeatFactorTrainingSampler"),
        (one_class, "ClassAwareTrainingSampler"),
        (many_classes, "RepeatFactorTrainingSampler"),
        (any_ids, "ClassAwareTrainingSampler"),
        (any_names, "RepeatFactorTrainingSampler"),
    ],
)
def test_training_and_evaluation(flags, tmp_path, change, sampler):
    opts = ("DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", 0.5)
    opts += ("TEST.PER_CATEGORY", True, "TEST.SAVE_PREDICTIONS", True)
    if change is many_classes:  # for speed
        opts += ("MODEL.RPN.POST_NMS_TOPK_TEST", 1, "MODEL.MASK_ON", False)
    job = setup_job(flags(change, *opts))
    assert job.num_classes()[0] == {one_class: 1, many_classes: 13_000}.get(
        change, 6 if change is last_ones_absent else 4
    )
    trained = flat(train(job))
    assert "bbox/AP" in trained and ("segm/AP" in trained) == (change is not many_classes)
    results = json.loads((tmp_path / "output/inference/lvis_instances_results.json").read_text())
    ids = {c["id"] for c in json.loads((tmp_path / "val.json").read_text())["categories"]}
    assert results and {result["category_id"] for result in results} <= ids
    weights = ("MODEL.WEIGHTS", f"{tmp_path}/output/model_final.pth")
    again = flat(evaluate(setup_job(flags(change, *opts, *weights, eval_only=True))))
    assert again == pytest.approx(trained, abs=1e-6)


@pytest.mark.parametrize("key", ["id", "name"])
def test_duplicates(flags, tmp_path, tiny_dataset, key):
    """One error in the check, and one at the start."""

    def duplicate(dataset, names):
        dataset["categories"][2][key] = dataset["categories"][0][key]
        return dataset

    with pytest.raises(UserError, match=f"json: category .*: {key} must be unique, got .* again"):
        setup_job(flags(duplicate))
    report = check_dataset(tmp_path / "train.json", tiny_dataset)
    assert [p.kind for p in report.problems].count(f"duplicate category {key}") == 1
