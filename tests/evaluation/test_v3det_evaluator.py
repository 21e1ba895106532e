"""Box AP class by class equals pycocotools and detectron2's COCOEvaluator."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from apa_det.evaluation import Detections, V3DetEvaluator
from apa_det.evaluation.coco_boxes import coco_box_ap

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def random_case(seed, num_images=20, num_classes=8):
    """Draw annotations, some of them crowds, and detections near and far, with tied scores."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []

    def box():
        return [*rng.uniform(0, 100, 2).tolist(), *rng.uniform(3, 150, 2).tolist()]

    for image_id in range(1, num_images + 1):
        for _ in range(rng.integers(0, 5)):
            xywh = box()
            ids = {"image_id": image_id, "category_id": int(rng.integers(3, num_classes + 1))}
            annotations.append(
                ids
                | {"id": len(annotations) + 1, "bbox": xywh, "area": xywh[2] * xywh[3] * 0.7}
                | {"iscrowd": int(rng.random() < 0.1)}
            )
            near = (np.array(xywh) + rng.normal(0, 4, 4).clip(-5, 5)).clip(1).tolist()
            detections.append(ids | {"bbox": near})
        for _ in range(rng.integers(0, 25)):
            ids = {"image_id": image_id, "category_id": int(rng.integers(1, num_classes))}
            detections.append(ids | {"bbox": box()})
    for detection in detections:
        detection["score"] = round(float(rng.random()), 1)
    return annotations, detections


def box_ap(annotations, detections, max_dets=300):
    return coco_box_ap(annotations, Detections.from_records(detections), max_dets)


def by_pycocotools(annotations, detections, max_dets):
    images = sorted({a["image_id"] for a in annotations + detections})
    classes = sorted({a["category_id"] for a in annotations + detections})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in images],
            "categories": [{"id": i} for i in classes],
            "annotations": copy.deepcopy(annotations),
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]
    chosen = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    chosen += [precision[..., area] for area in (1, 2, 3)]
    return {n: 100 * p[p > -1].mean() for n, p in zip(NAMES, chosen, strict=True)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_dets", [2, 300])
def test_pycocotools(seed, max_dets):
    annotations, detections = random_case(seed)
    before = copy.deepcopy((annotations, detections))
    results = box_ap(annotations, detections, max_dets)
    assert (annotations, detections) == before
    assert results == pytest.approx(by_pycocotools(annotations, detections, max_dets), abs=1e-9)


def test_perfect_and_empty():
    annotations, _ = random_case(0)
    annotations = [a | {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]} for a in annotations]
    perfect = [
        {"score": 0.5, **{k: a[k] for k in ("image_id", "category_id", "bbox")}}
        for a in annotations
    ]
    assert box_ap(annotations, perfect)["AP"] == pytest.approx(100)
    assert box_ap(annotations, [])["AP"] == 0
    assert np.isnan(list(box_ap([], perfect).values())).all()
    # area and iscrowd are optional
    bare = [{k: v for k, v in a.items() if k not in ("area", "iscrowd")} for a in annotations]
    assert box_ap(bare, perfect) == box_ap(annotations, perfect)


def test_evaluator(tmp_path):
    """The results of detectron2's COCOEvaluator, without the AP of each class."""
    annotations, detections = random_case(1)
    num_classes = 8
    names = {a["image_id"]: f"{a['image_id']}.jpg" for a in annotations + detections}
    dataset = {
        "info": {},
        "images": [
            {"id": i, "file_name": n, "height": 300, "width": 300} for i, n in names.items()
        ],
        "annotations": annotations,
        "categories": [{"id": 10 * i, "name": f"c{i}"} for i in range(1, num_classes + 1)],
    }
    for record in annotations + detections:
        record["category_id"] *= 10
    json_file = tmp_path / "val.json"
    json_file.write_text(json.dumps(dataset))
    name = f"v3det_test_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        evaluator_type="v3det",
        thing_classes=[c["name"] for c in dataset["categories"]],
        thing_dataset_id_to_contiguous_id={10 * i: i - 1 for i in range(1, num_classes + 1)},
    )
    ours = V3DetEvaluator(name, output_dir=str(tmp_path / "ours"))
    theirs = COCOEvaluator(
        name,
        tasks=("bbox",),
        output_dir=str(tmp_path / "theirs"),
        max_dets_per_image=300,
        use_fast_impl=False,
    )
    for evaluator in (ours, theirs):
        evaluator.reset()
        for image_id in names:
            rows = [d for d in detections if d["image_id"] == image_id]
            instances = Instances((300, 300))
            boxes = torch.tensor([d["bbox"] for d in rows], dtype=torch.float64).view(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.tensor([d["score"] for d in rows])
            instances.pred_classes = torch.tensor([d["category_id"] // 10 - 1 for d in rows])
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results, expected = ours.evaluate()["bbox"], theirs.evaluate()["bbox"]
    assert list(results) == list(NAMES)
    assert results == pytest.approx({n: expected[n] for n in NAMES}, abs=1e-9)
    files = [tmp_path / which / "coco_instances_results.json" for which in ("ours", "theirs")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


def test_without_ground_truth(tmp_path, caplog):
    name = f"v3det_unannotated_{tmp_path.name}"
    json_file = tmp_path / "test.json"
    images = [{"id": 3, "file_name": "a.jpg", "height": 30, "width": 40}]
    json_file.write_text(json.dumps({"images": images, "categories": [{"id": 8, "name": "c"}]}))
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        json_file=str(json_file), thing_classes=["c"], thing_dataset_id_to_contiguous_id={8: 0}
    )
    evaluator = V3DetEvaluator(name, output_dir=str(tmp_path / "out"))
    instances = Instances((30, 40), pred_boxes=Boxes(torch.tensor([[1.0, 2, 3, 5]])))
    instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    evaluator.process([{"image_id": 3}], [{"instances": instances}])
    with caplog.at_level("INFO"):
        assert evaluator.evaluate() == {}
    assert f"{name} has no ground truth: no metrics are computed." in caplog.text
    (record,) = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    assert record == {"image_id": 3, "category_id": 8, "bbox": [1, 2, 2, 3], "score": 0.5}
