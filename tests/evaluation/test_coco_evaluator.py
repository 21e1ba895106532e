"""The COCO evaluator: detectron2's results, in a short log for many classes."""

import json
import logging

import numpy as np
import pytest
from detectron2 import evaluation
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances
from torch import tensor

from apa_det.evaluation import COCOEvaluator

COUNT = 130


@pytest.fixture
def dataset(tmp_path):
    """A dataset whose images have one object each, of the first 120 of 130 classes."""
    box = {"bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}
    content = {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 90, "width": 90} for i in range(1, COUNT)
        ],
        "annotations": [{"id": i, "image_id": i, "category_id": i, **box} for i in range(1, 121)],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, COUNT + 1)],
    }
    path, name = tmp_path / "val.json", f"coco evaluator {tmp_path}"
    path.write_text(json.dumps(content))
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        json_file=str(path),
        evaluator_type="coco",
        thing_classes=[c["name"] for c in content["categories"]],
        thing_dataset_id_to_contiguous_id={i: i - 1 for i in range(1, COUNT + 1)},
    )
    yield name
    DatasetCatalog.remove(name), MetadataCatalog.remove(name)


def results_of(evaluator):
    evaluator.reset()
    for image_id in range(1, 121):
        instances = Instances((90, 90))
        shift = image_id % 12  # the larger, the lower the IoU
        instances.pred_boxes = Boxes(tensor([[10.0 + shift, 10, 50 + shift, 50]]))
        instances.scores = tensor([0.5])
        instances.pred_classes = tensor([image_id - 1])
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return flatten_results_dict(evaluator.evaluate())


def test_many_classes(dataset, caplog):
    arguments = {"tasks": ("bbox",), "use_fast_impl": False}
    expected = results_of(evaluation.COCOEvaluator(dataset, **arguments))
    caplog.clear()
    caplog.set_level(logging.INFO)
    results = results_of(COCOEvaluator(dataset, **arguments))
    assert len(results) == 6 + COUNT and results == pytest.approx(expected, nan_ok=True)
    (table,) = [m for m in caplog.messages if "Per-category" in m]
    lines = table.splitlines()
    assert (
        lines[0] == "Per-category bbox AP (10 classes have no ground truth):" and len(lines) == 13
    )
    best, worst = lines[3].split("|")[2], lines[3].split("|")[4]
    aps = [results[f"bbox/AP-c{i}"] for i in range(1, 121)]
    assert [float(best), float(worst)] == pytest.approx([max(aps), min(aps)], abs=1e-3)
    assert np.isnan(results["bbox/AP-c130"])


def test_no_detections(dataset):
    evaluator = COCOEvaluator(dataset, tasks=("bbox",), use_fast_impl=False)
    assert np.isnan(evaluator._derive_coco_results(None, "bbox", ["c"] * 200)["AP"])
