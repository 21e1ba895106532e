import csv
import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import LVISEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances

from apa_det import add_apa_config
from apa_det.data import register_lvis_format
from apa_det.errors import UserError
from apa_det.evaluation import (
    METRIC_REGISTRY,
    METRICS,
    FrequencyGroups,
    LongTailEvaluator,
    evaluator_arguments,
    evaluator_metric_names,
)

NAME = "long_tail_test"
BOX = [10.0, 10.0, 50.0, 50.0]  # XYXY
SQUARE = [[10, 10, 50, 10, 50, 50, 10, 50]]


@pytest.fixture
def register(tmp_path):
    """Write and register a dataset of 3 images; ``counts`` gives category ids and image counts."""

    def write(annotated=True, counts=((20, 50), (7, 3), (30, 5000)), thresholds=None, **fields):
        dataset = {
            "images": [
                {
                    "id": i,
                    "file_name": f"{i}.jpg",
                    "height": 100,
                    "width": 100,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                for i in (11, 12, 13)
            ],
            "categories": [
                {"id": i, "name": f"c{i}", **({"image_count": n} if n else {}), **fields}
                for i, n in counts
            ],
            "annotations": [
                {
                    "id": n,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [10.0, 10.0, 40.0, 40.0],
                    "area": 1600.0,
                    "segmentation": SQUARE,
                }
                for n, (image_id, category_id) in enumerate(
                    [(11, 7), (12, 20), (13, 20), (13, 30)] if annotated else [], 1
                )
            ],
        }
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps(dataset))
        register_lvis_format(NAME, path, tmp_path, **(thresholds or {}))

    yield write
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


class Detector(torch.nn.Module):
    """Predicts the given (class index, score) of each image, all at BOX."""

    def __init__(self, detections, masks=True):
        super().__init__()
        self.detections, self.masks = detections, masks

    def forward(self, inputs):
        return [{"instances": self.instances(item["image_id"])} for item in inputs]

    def instances(self, image_id):
        detections = self.detections.get(image_id, [])
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor([BOX] * len(detections)).reshape(-1, 4))
        instances.pred_classes = torch.tensor([c for c, _ in detections], dtype=torch.int64)
        instances.scores = torch.tensor([s for _, s in detections])
        if self.masks:
            instances.pred_masks = torch.zeros(len(detections), 100, 100, dtype=torch.bool)
            instances.pred_masks[:, 10:50, 10:50] = True
        return instances


LOADER = [[{"image_id": 11}, {"image_id": 12}], [{"image_id": 13}]]
# Class indices 0, 1, 2 are the categories 7 (rare), 20 (common) and 30 (frequent).
DETECTIONS = {11: [(0, 0.9)], 12: [(1, 0.8)], 13: [(2, 0.7), (0, 0.3)]}


def test_boxes_and_masks_by_frequency(register):
    register()
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME))
    assert list(results) == ["bbox", "segm"]
    for task in results.values():
        assert tuple(task) == METRICS
        assert task["APr"] == pytest.approx(100)
        assert task["APc"] == pytest.approx(100 * 51 / 101)
        assert task["APf"] == pytest.approx(100)
        assert task["APm"] == pytest.approx(task["AP"])
        assert math.isnan(task["APs"]) and math.isnan(task["APl"])


@pytest.mark.parametrize("has_keys", [True, False])
def test_call_of_old_projects(register, tmp_path, caplog, has_keys):
    """LVISEvaluator(name, cfg, True, folder), with a config with or without the keys of apa_det."""
    register()
    cfg, opts = get_cfg(), {}
    if has_keys:
        add_apa_config(cfg)
        cfg.TEST.FREQUENCY_GROUPS, cfg.TEST.PER_CATEGORY = "few:10,many", True
        cfg.TEST.EXTRA_METRICS = ["AR"]
        opts = evaluator_arguments(cfg)
    evaluator = LongTailEvaluator(NAME, cfg, True, str(tmp_path / "out"))
    assert "deprecated" in caplog.records[-1].message
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)
    new = LongTailEvaluator(NAME, output_dir=str(tmp_path / "new"), **opts)
    expected = inference_on_dataset(Detector(DETECTIONS), LOADER, new)
    assert list(results) == list(expected) == ["bbox", "segm"]
    for task, values in results.items():
        assert values == pytest.approx(expected[task], nan_ok=True)
        assert ("APfew" in values, "AR@300" in values) == (has_keys, has_keys)
    assert (tmp_path / "out/bbox_per_category.csv").exists() == has_keys


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("bbox",), "tasks must be None or a tuple of bbox and segm; got 'bbox'"),
        ((("mask",),), "tasks must be None or a tuple"),
        ((None, "out"), "distributed must be True or False, got 'out'"),
        ((None, True, True), "output_dir must be a folder or None, got True"),
    ],
)
def test_wrong_calls_fail_before_the_inference(register, arguments, message):
    register()
    with pytest.raises(UserError, match=message):
        LongTailEvaluator(NAME, *arguments)


def test_boxes_only(register):
    register()
    evaluator = LongTailEvaluator(NAME)
    assert list(inference_on_dataset(Detector(DETECTIONS, masks=False), LOADER, evaluator)) == [
        "bbox"
    ]
    segm = LongTailEvaluator(NAME, tasks=("segm",))
    with pytest.raises(UserError, match="no masks"):
        inference_on_dataset(Detector(DETECTIONS, masks=False), LOADER, segm)


def test_frequency_of_the_file_takes_precedence(register):
    register(frequency="r")
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME))["bbox"]
    assert results["APr"] == pytest.approx(results["AP"])
    assert math.isnan(results["APc"]) and math.isnan(results["APf"])


def test_thresholds_of_the_dataset(register):
    register(thresholds={"rare_max": 60, "common_max": 10000})
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME))["bbox"]
    assert results["APr"] == pytest.approx(100 * (1 + 51 / 101) / 2)
    assert results["APc"] == pytest.approx(100) and math.isnan(results["APf"])


def test_warns_if_groups_are_based_on_the_evaluated_images(register, caplog):
    register(counts=((20, None), (7, None), (30, 5000)))
    with caplog.at_level("WARNING"):
        results = inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME))[
            "bbox"
        ]
    assert "neither frequency nor image_count" in caplog.text
    assert results["APr"] == pytest.approx(100 * (1 + 51 / 101) / 2)
    caplog.clear()
    register(counts=((20, 50), (7, 3), (30, 5000)))
    LongTailEvaluator(NAME)
    assert "neither" not in caplog.text


def test_no_detections(register):
    register()
    results = inference_on_dataset(Detector({}), LOADER, LongTailEvaluator(NAME))
    assert list(results) == ["bbox", "segm"]
    assert results["segm"]["AP"] == results["segm"]["APr"] == results["bbox"]["APf"] == 0


def test_repeated_image_counts_once(register):
    register()
    once = inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME))
    twice = inference_on_dataset(Detector(DETECTIONS), LOADER * 2, LongTailEvaluator(NAME))
    assert repr(twice) == repr(once)


def test_reset(register):
    register()
    evaluator = LongTailEvaluator(NAME)
    inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)
    assert inference_on_dataset(Detector({}), LOADER, evaluator)["bbox"]["AP"] == 0


def test_predictions_file_has_category_ids_of_the_dataset(register, tmp_path):
    register()
    out = str(tmp_path / "out")
    inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME, output_dir=out))
    assert not (tmp_path / "out").exists()
    evaluator = LongTailEvaluator(NAME, output_dir=out, save_predictions=True)
    inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)
    written = json.loads((tmp_path / "out/lvis_instances_results.json").read_text())
    assert [(p["image_id"], p["category_id"]) for p in written] == [
        (11, 7),
        (12, 20),
        (13, 30),
        (13, 7),
    ]


def test_no_results_without_annotations(register):
    register(annotated=False)
    assert inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME)) == {}


def test_unknown_class(register):
    register()
    evaluator = LongTailEvaluator(NAME)
    with pytest.raises(UserError, match="class 3 .*only 3 classes"):
        inference_on_dataset(Detector({11: [(3, 0.9)]}), LOADER, evaluator)


def test_equals_the_evaluator_of_detectron2(register, monkeypatch):
    register(frequency="f")
    ours = inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME))
    monkeypatch.setattr(np, "float", float, raising=False)
    theirs = inference_on_dataset(Detector(DETECTIONS), LOADER, LVISEvaluator(NAME))
    for task in ("bbox", "segm"):
        for metric, value in theirs[task].items():
            assert ours[task][metric] == value or (value < 0 and math.isnan(ours[task][metric]))


def test_engines_agree(register):
    register()
    fast, lvis = (
        inference_on_dataset(Detector(DETECTIONS), LOADER, LongTailEvaluator(NAME, engine=engine))
        for engine in ("fast", "lvis")
    )
    for task in ("bbox", "segm"):
        assert fast[task] == pytest.approx(lvis[task], abs=1e-9, nan_ok=True)


def test_extra_metrics(register):
    register()
    extra = ("AR", "fixed", "pool", "boundary")
    evaluator = LongTailEvaluator(NAME, extra_metrics=extra)
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)
    assert list(results) == ["bbox", "segm", "boundary"]
    for task in results.values():
        assert tuple(task) == evaluator_metric_names(extra=extra)
        assert task["ARr@300"] == pytest.approx(100)
        assert task["ARc@300"] == pytest.approx(50)
        assert task["APc_fixed"] == pytest.approx(task["APc"])
        assert task["APr_pool"] == pytest.approx(100)
    with pytest.raises(UserError, match="among AR, fixed, pool, boundary; got speed"):
        LongTailEvaluator(NAME, extra_metrics=["speed"])


def num_detections(ground_truth, detections, groups):
    """Count the detections of each frequency group."""
    indices = np.searchsorted(ground_truth.category_ids, detections.category_ids)
    counts = np.bincount(ground_truth.category_groups[indices], minlength=len(groups.names))
    return {f"N{n}": float(c) for n, c in zip(groups.names, counts, strict=True)}


def mean_score(ground_truth, detections, groups, *, iou_type, max_dets):
    return {f"score_{iou_type}@{max_dets}": detections.scores.mean() if len(detections) else 0.0}


def test_custom_metrics(register, monkeypatch):
    register()
    monkeypatch.setattr(METRIC_REGISTRY, "_obj_map", dict(METRIC_REGISTRY._obj_map))
    METRIC_REGISTRY.register(num_detections)
    METRIC_REGISTRY.register(mean_score)
    extra = ("num_detections", "mean_score")
    evaluator = LongTailEvaluator(NAME, extra_metrics=extra)
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)
    for iou_type, metrics in results.items():
        assert (metrics["Nr"], metrics["Nc"], metrics["Nf"]) == (2, 1, 1)
        assert metrics[f"score_{iou_type}@300"] == pytest.approx(0.675)
    assert tuple(results["bbox"]) == evaluator_metric_names(extra=extra)


def test_custom_groups(register, caplog):
    register()
    groups = FrequencyGroups.from_mapping({"c7": "night", "c20": "day", "c30": "day"})
    evaluator = LongTailEvaluator(NAME, groups=groups)
    with caplog.at_level("INFO"):
        results = inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)["bbox"]
    assert tuple(results) == evaluator_metric_names(("night", "day"))
    assert results["APnight"] == pytest.approx(100)
    assert results["APday"] == pytest.approx(100 * (51 / 101 + 1) / 2)
    assert "Categories evaluated: 1 night, 2 day." in caplog.text


def test_count_from_another_dataset(register, tmp_path):
    register()
    counted = json.loads((tmp_path / "dataset.json").read_text())
    for category in counted["categories"]:
        category["image_count"] = 1000
    (tmp_path / "train.json").write_text(json.dumps(counted))
    register_lvis_format("long_tail_counts", tmp_path / "train.json", tmp_path)
    evaluator = LongTailEvaluator(NAME, count_from="long_tail_counts")
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)["bbox"]
    DatasetCatalog.pop("long_tail_counts"), MetadataCatalog.pop("long_tail_counts")
    assert math.isnan(results["APr"]) and results["APf"] == results["AP"]


def test_per_category(register, tmp_path):
    register()
    out = tmp_path / "out"
    evaluator = LongTailEvaluator(NAME, output_dir=str(out), per_category=True)
    inference_on_dataset(Detector(DETECTIONS), LOADER, evaluator)
    assert sorted(path.name for path in out.iterdir()) == [
        "bbox_per_category.csv",
        "segm_per_category.csv",
    ]
    with open(out / "bbox_per_category.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["id"], r["name"], r["group"], r["image_count"]) for r in rows] == [
        ("7", "c7", "r", "3"),
        ("20", "c20", "c", "50"),
        ("30", "c30", "f", "5000"),
    ]
    assert [float(row["AP"]) for row in rows] == pytest.approx([1, 51 / 101, 1])
    with pytest.raises(UserError, match="need an output_dir"):
        LongTailEvaluator(NAME, per_category=True)


def test_subset(register, caplog):
    register()
    both = LongTailEvaluator(NAME, subset=2)
    results = inference_on_dataset(Detector(DETECTIONS), LOADER, both)
    assert list(results) == ["bbox", "segm", "subset/bbox", "subset/segm"]
    assert len(both.subset.image_ids) == 2 and 11 in both.subset.image_ids  # the rare one
    alone = LongTailEvaluator(NAME, subset=2, subset_only=True)
    loader = [[{"image_id": image_id}] for image_id in both.subset.image_ids.tolist()]
    with caplog.at_level("WARNING"):
        again = inference_on_dataset(Detector(DETECTIONS), loader, alone)
    assert "processed only" not in caplog.text
    assert repr(dict(again)) == repr({k: v for k, v in results.items() if "subset" in k})
    assert results["subset/bbox"]["APr"] == pytest.approx(100)
    with pytest.raises(UserError, match="subset must be >= 1 with subset_only, got 0"):
        LongTailEvaluator(NAME, subset_only=True)


def test_images_that_were_not_processed(register, caplog):
    register()
    with caplog.at_level("WARNING"):
        inference_on_dataset(Detector(DETECTIONS), LOADER[:1], LongTailEvaluator(NAME))
    assert "processed only 2 of 3 images" in caplog.text


def test_coco_format(tmp_path):
    dataset = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (1, 2)],
        "categories": [{"id": i, "name": f"c{i}", "image_count": 10**i} for i in (1, 3)],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [10.0, 10.0, 40.0, 40.0],
                "area": 1600.0,
                "iscrowd": 0,
                "segmentation": SQUARE,
            }
            for i in (1, 2)
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(dataset))
    register_coco_instances("coco_test", {}, str(path), str(tmp_path))
    evaluator = LongTailEvaluator("coco_test")
    detector = Detector({1: [(0, 0.9), (1, 0.8)], 2: [(0, 0.7)]})
    results = inference_on_dataset(detector, [[{"image_id": 1}, {"image_id": 2}]], evaluator)
    DatasetCatalog.pop("coco_test"), MetadataCatalog.pop("coco_test")
    assert results["bbox"]["APr"] == results["segm"]["AP"] == pytest.approx(100)


def test_built_in_names_count_categories_from_one(tmp_path, monkeypatch):
    """A dataset like detectron2's lvis_v1_val, without an id mapping in its metadata."""
    dataset = {
        "images": [
            {
                "id": 11,
                "coco_url": "http://x/val2017/11.jpg",
                "height": 100,
                "width": 100,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        ],
        "categories": [
            {"id": i, "name": f"c{i}", "synonyms": [f"c{i}"], "image_count": 5, "frequency": "r"}
            for i in (1, 2)
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 11,
                "category_id": 2,
                "bbox": [10.0, 10.0, 40.0, 40.0],
                "area": 1600.0,
                "segmentation": SQUARE,
            }
        ],
    }
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(dataset))
    DatasetCatalog.register("built_in_test", lambda: None)
    metadata = MetadataCatalog.get("built_in_test")
    metadata.set(json_file=str(path), thing_classes=["c1", "c2"], evaluator_type="lvis")
    results = inference_on_dataset(
        Detector({11: [(1, 0.9)]}), [[{"image_id": 11}]], LongTailEvaluator("built_in_test")
    )
    DatasetCatalog.pop("built_in_test")
    MetadataCatalog.pop("built_in_test")
    assert results["bbox"]["APr"] == pytest.approx(100)
