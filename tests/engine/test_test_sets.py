"""Test sets without ground truth, and several test sets, in both config formats."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from lvis import LVIS, LVISResults

from apa_det.engine import evaluate, setup_job, train
from apa_det.errors import UserError
from apa_det.evaluation import Detections, GroundTruth
from apa_det.evaluation import evaluate as evaluate_detections

from ..conftest import flat, read_metrics, tiny_datasets

RESULTS = "inference/lvis_instances_results.json"


@pytest.fixture
def test_dev(tiny_dataset, tmp_path):
    """Write the test set as LVIS publishes one, without annotations; return its registration."""

    def write(**tables):
        dataset = json.loads((tiny_dataset / "val.json").read_text())
        del dataset["annotations"]
        keys = ("neg_category_ids", "not_exhaustive_category_ids")
        for image in dataset["images"]:
            for key in keys if "annotations" not in tables else ():
                del image[key]
        path = tmp_path / "image_info_test_dev.json"
        path.write_text(json.dumps(dataset | tables))
        return ["tiny_test_dev", str(path), str(tiny_dataset)]

    yield write
    if "tiny_test_dev" in DatasetCatalog:
        DatasetCatalog.pop("tiny_test_dev")
        MetadataCatalog.pop("tiny_test_dev")


@pytest.fixture(params=["yaml", "lazy"])
def flags(request, tiny_dataset, arguments, lazy_arguments):
    """Make training flags with more datasets and other test sets, in both formats."""

    def make(*test_sets, entries=(), **settings):
        datasets = [*tiny_datasets(tiny_dataset), *entries]
        eval_only = settings.pop("eval_only", False)
        if request.param == "yaml":
            names = {"best": "TEST.BEST_METRIC", "weights": "MODEL.WEIGHTS"}
            names |= {"period": "TEST.EVAL_PERIOD", "subset": "TEST.SUBSET"}
            names |= {"train": "DATASETS.TRAIN", "patience": "TEST.EARLY_STOPPING_PATIENCE"}
            opts = ["DATASETS.LVIS_FORMAT", datasets, "DATASETS.TEST", test_sets]
            opts += [x for key, value in settings.items() for x in (names[key], value)]
            return arguments(*opts, eval_only=eval_only)
        names = {"best": "train.best_metric", "weights": "train.init_checkpoint"}
        names |= {"period": "train.eval_period", "subset": "train.eval_subset"}
        names |= {"patience": "train.early_stopping_patience"}
        names |= {"train": "dataloader.train.dataset.names"}
        opts = [f"dataloader.lvis_format={datasets}"]
        opts += [f"dataloader.test.dataset.names=[{','.join(test_sets)}]"]
        opts += [f"{names[key]}={value}" for key, value in settings.items()]
        return lazy_arguments(*opts, eval_only=eval_only)

    return make


@pytest.fixture
def weights(flags, output):
    train(setup_job(flags("tiny_val")))
    return output / "model_final.pth"


@pytest.mark.parametrize("tables", [{}, {"annotations": []}])
def test_without_ground_truth(flags, weights, output, test_dev, tables, tiny_dataset, caplog):
    expected = flat(evaluate(setup_job(flags("tiny_val", weights=weights, eval_only=True))))
    entry = test_dev(**tables)
    caplog.set_level(logging.INFO)
    logging.getLogger("apa_det").propagate = True
    job = setup_job(flags("tiny_test_dev", entries=[entry], weights=weights, eval_only=True))
    assert evaluate(job) == {}
    logging.getLogger("apa_det").propagate = False
    assert "tiny_test_dev has no ground truth: no metrics are computed." in caplog.text

    records = json.loads((output / RESULTS).read_text())
    assert set(records[0]) == {"image_id", "category_id", "score", "segmentation"}
    LVISResults(LVIS(str(tiny_dataset / "val.json")), str(output / RESULTS))  # its checks
    truth = GroundTruth.from_file(tiny_dataset / "val.json")
    metrics = evaluate_detections(truth, Detections.from_records(records), "segm").metrics()
    for name in ("AP", "APs", "APm", "APr", "APf"):
        if f"segm/{name}" in expected:
            assert 100 * metrics[name] == pytest.approx(expected[f"segm/{name}"])


def test_several_test_sets(flags, output, test_dev, tiny_dataset):
    """The best metric is of the second test set, and the third has no ground truth."""
    entries = [test_dev(), ["tiny_val_too", f"{tiny_dataset}/val.json", str(tiny_dataset)]]
    names = ("tiny_val", "tiny_val_too", "tiny_test_dev")
    best = {"best": "tiny_val_too/segm/AP50", "period": 1, "patience": 5}
    train(setup_job(flags(*names, entries=entries, **best)))
    last = read_metrics(output)[-1]
    assert last["tiny_val_too/segm/AP50"] == last["tiny_val/segm/AP50"]
    assert not any(name.startswith("tiny_test_dev") for name in last)
    assert (output / "inference/tiny_test_dev/lvis_instances_results.json").is_file()
    model = torch.load(output / "model_best.pth", weights_only=True)
    assert model["metric"] == "tiny_val_too/segm/AP50"


def test_subsets_of_several_test_sets(flags, output, test_dev):
    best = {"best": "tiny_val/subset/bbox/AP", "period": 1, "subset": 3}
    train(setup_job(flags("tiny_val", "tiny_test_dev", entries=[test_dev()], **best)))
    subsets = [m["tiny_val/subset/bbox/AP"] for m in read_metrics(output) if "tiny_val/" in str(m)]
    model = torch.load(output / "model_best.pth", weights_only=True)
    assert model["value"] == max(subsets)


def test_best_metric_names_its_test_set(flags, test_dev):
    names, entry = ("tiny_train", "tiny_val", "tiny_test_dev"), test_dev()
    for best in ("bbox/AP", "tiny_test_dev/bbox/AP", "tiny_val/bbox/APx"):
        match = (
            "must be one of tiny_train/bbox/AP, .* tiny_val/segm/APf, with the name of the test "
            f"set first; got '{best}'."
        )
        with pytest.raises(UserError, match=match):
            setup_job(flags(*names, entries=[entry], best=best, period=1))
    with pytest.raises(UserError, match="the test sets have no ground truth: set it to"):
        setup_job(flags("tiny_test_dev", entries=[entry], best="bbox/AP", period=1))


def test_training_needs_annotations(flags, test_dev):
    with pytest.raises(UserError, match='training set "tiny_test_dev", has no annotations'):
        setup_job(flags("tiny_val", entries=[test_dev()], train="['tiny_test_dev']"))
