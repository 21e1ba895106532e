import gzip
import json
import math

import numpy as np
import pytest
from detectron2.utils.logger import _LOG_COUNTER
from lvis import LVIS, LVISEval, LVISResults

from apa_det.data import coco_to_lvis
from apa_det.errors import MissingFileError, UserError
from apa_det.evaluation import FrequencyGroups, compare
from apa_det.evaluation.report.page import _scope
from apa_det.evaluation.side_by_side import short_names
from apa_det.text import format_number
from apa_det.utils.json_files import read_json, write_json


def lvis_api(gt, results, iou_type, monkeypatch):
    """Return lvis-api's metrics in percent, computed as in its README."""
    monkeypatch.setattr(np, "float", float, raising=False)
    records = read_json(results)
    if iou_type == "segm":  # otherwise lvis-api computes the area from the box
        for record in records:
            del record["bbox"]
    run = LVISEval(LVIS(str(gt)), LVISResults(LVIS(str(gt)), records), iou_type)
    run.run()
    return {name: 100 * value for name, value in run.get_results().items()}


@pytest.fixture(scope="module")
def comparison(detections_on_synthetic):
    return compare(detections_on_synthetic.gt, detections_on_synthetic.results)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_metrics_are_those_of_lvis_api(comparison, detections_on_synthetic, iou_type, monkeypatch):
    paths = detections_on_synthetic
    for path, file in zip(paths.results, comparison.files, strict=True):
        metrics = file.by_iou_type[iou_type].metrics
        expected = lvis_api(paths.gt, path, iou_type, monkeypatch)
        assert len(expected) == 13
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, abs=1e-9) or (
                value < 0 and math.isnan(metrics[name])
            )
        assert 10 < metrics["AP"] < 90 and not math.isnan(metrics["APr"])


def test_table_shows_the_metrics(comparison):
    lines = comparison.table("segm").splitlines()
    assert lines[0].split()[:10] == "segm AP AP50 AP75 APs APm APl APr APc APf".split()
    for line, file in zip(lines[2:], comparison.files, strict=True):
        name, *numbers = line.split()
        values = dict(zip(lines[0].split()[1:], numbers, strict=True))
        assert name == file.name
        for metric, text in values.items():
            assert text == format_number(file.by_iou_type["segm"].metrics[metric], 2)
    assert [f.name for f in comparison.files] == ["first", "second"]
    text = comparison.text()
    assert comparison.table("segm") in text and comparison.difference_table("bbox") in text
    assert "AP_fixed" not in text and "Class-agnostic" not in text


def test_differences_are_paired(comparison, detections_on_synthetic, tmp_path):
    """The other order negates differences and intervals; a copy has no difference."""
    first, second = detections_on_synthetic.results
    write_json(read_json(first), tmp_path / "copy.json")
    other = compare(detections_on_synthetic.gt, [second, first, tmp_path / "copy.json"], ["bbox"])
    [(file, forth)] = comparison.differences("bbox")
    assert file.name == "second" and [*forth] == ["AP", "APr", "APc", "APf"]
    (_, back), (_, of_copy) = other.differences("bbox")
    assert np.isnan(forth.pop("APf").difference)  # no ground truth
    for name, difference in forth.items():
        values = [f.by_iou_type["bbox"].metrics[name] for f in comparison.files]
        assert difference.difference == pytest.approx(values[1] - values[0])
        assert difference.low < difference.difference < difference.high
        negated = [-back[name].difference, -back[name].high, -back[name].low]
        assert negated == pytest.approx([difference.difference, difference.low, difference.high])
        assert of_copy[name] == back[name]
    same = compare(detections_on_synthetic.gt, [first, tmp_path / "copy.json"], ["bbox"])
    [(_, differences)] = same.differences("bbox")
    del differences["APf"]
    assert {(d.difference, d.low, d.high) for d in differences.values()} == {(0, 0, 0)}
    assert not any(d.is_clear for d in differences.values())


def test_group_without_ground_truth(detections_on_synthetic):
    all_rare = FrequencyGroups.from_thresholds([("r", 10**6), ("f", None)])
    paths = detections_on_synthetic
    comparison = compare(paths.gt, paths.results[:1], ["bbox"], groups=all_rare)
    heads, _, numbers = (line.split() for line in comparison.table("bbox").splitlines())
    assert numbers[heads.index("APf")] == "–"
    assert numbers[heads.index("APr")] == numbers[heads.index("AP")]
    assert comparison.categories_evaluated == {"r": 12, "f": 0}
    assert comparison.summary()["files"][0]["bbox"]["APf"] is None


def test_engines_agree(comparison, detections_on_synthetic):
    paths = detections_on_synthetic
    reference = compare(paths.gt, paths.results[:1], engine="lvis")
    assert reference.engine == "lvis"
    for iou_type, results in reference.files[0].by_iou_type.items():
        other = comparison.files[0].by_iou_type[iou_type].metrics
        assert results.metrics == pytest.approx(other, abs=1e-9, nan_ok=True)


def test_extra_columns(detections_on_synthetic):
    paths = detections_on_synthetic
    comparison = compare(paths.gt, paths.results, ["bbox"], fixed=True, pooled=True)
    metrics = comparison.files[1].by_iou_type["bbox"].metrics
    assert metrics["APr_fixed"] == pytest.approx(metrics["APr"])  # far fewer than 300 per image
    assert 0 < metrics["AP_pool"] < 100
    tables = comparison.table("bbox").split("\n\n")
    assert len(tables) == 2 and "APr_fixed" in tables[1] and "first" in tables[1]


def test_file_without_masks_has_box_metrics_only(detections_on_synthetic, tmp_path):
    paths = detections_on_synthetic
    records = [
        {k: v for k, v in r.items() if k != "segmentation"} for r in read_json(paths.results[0])
    ]
    write_json(records, tmp_path / "boxes.json")
    comparison = compare(paths.gt, [tmp_path / "boxes.json", paths.results[0]])
    assert [list(f.by_iou_type) for f in comparison.files] == [["bbox"], ["bbox", "segm"]]
    boxes, both = (file.by_iou_type["bbox"] for file in comparison.files)
    assert boxes.metrics == pytest.approx(both.metrics, nan_ok=True)
    assert len(comparison.table("segm").splitlines()) == 3


def test_no_detection(detections_on_synthetic, tmp_path, caplog):
    (tmp_path / "none.json").write_text("[]")
    comparison = compare(detections_on_synthetic.gt, [tmp_path / "none.json"], details=True)
    assert "none.json has no detections" in caplog.text
    for iou_type in ("bbox", "segm"):
        assert comparison.files[0].by_iou_type[iou_type].metrics["AP"] == 0


def test_coco_format(comparison, detections_on_synthetic, tmp_path, caplog):
    """Every category counts in every image, so there are more false positives."""
    paths = detections_on_synthetic
    coco = read_json(paths.gt)
    for image in coco["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in coco["categories"]:
        del category["frequency"]
    write_json(coco, tmp_path / "coco.json")
    with caplog.at_level("INFO"):
        from_coco = compare(tmp_path / "coco.json", paths.results)
    assert "coco.json is in COCO format" in caplog.text
    assert from_coco.categories_evaluated == comparison.categories_evaluated
    write_json(coco_to_lvis(coco), tmp_path / "converted.json")
    converted = compare(tmp_path / "converted.json", paths.results)
    assert repr(from_coco.summary()["files"]) == repr(converted.summary()["files"])
    for coco, lvis in zip(from_coco.files, comparison.files, strict=True):
        assert 0 < coco.by_iou_type["bbox"].metrics["AP"] < lvis.by_iou_type["bbox"].metrics["AP"]


def test_crowds_are_noted(detections_on_synthetic, tmp_path, caplog):
    paths = detections_on_synthetic
    coco = read_json(paths.gt)
    for image in coco["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    coco["annotations"][0]["iscrowd"] = 1
    write_json(coco, tmp_path / "coco.json")
    _LOG_COUNTER.clear()
    with caplog.at_level("WARNING", "apa_det"):
        comparison = compare(tmp_path / "coco.json", paths.results[:1], ["bbox"])
    note = comparison.ground_truth.crowd_note()
    assert note.startswith("1 crowd region of COCO")
    assert caplog.text.count(note) == 1 and note in _scope(comparison)


def test_count_from_training_set(detections_on_synthetic, tmp_path):
    paths = detections_on_synthetic
    train = read_json(paths.gt.replace("val.json", "train.json"))
    val = read_json(paths.gt)
    for category in val["categories"]:
        for key in ("frequency", "image_count", "instance_count"):
            del category[key]
    write_json(val, tmp_path / "val.json")
    path = tmp_path / "train.json"
    write_json(train, path)
    from_val = compare(tmp_path / "val.json", paths.results[:1], count_from=path)
    counts = [category["image_count"] for category in train["categories"]]
    assert from_val.ground_truth.image_counts.tolist() == counts


def test_nothing_to_evaluate(detections_on_synthetic, tmp_path):
    dataset = {**read_json(detections_on_synthetic.gt), "annotations": []}
    write_json(dataset, tmp_path / "empty.json")
    with pytest.raises(UserError, match="empty.json has no annotations to evaluate"):
        compare(tmp_path / "empty.json", detections_on_synthetic.results)


def test_wrong_image_root(detections_on_synthetic, tmp_path):
    paths = detections_on_synthetic
    with pytest.raises(MissingFileError, match="the first image of the ground truth"):
        compare(paths.gt, paths.results, details=True, image_root=tmp_path)


def test_summary_is_json(comparison):
    summary = json.loads(json.dumps(comparison.summary(), allow_nan=False))
    assert summary["images"] == 24 and summary["max_dets"] == 300
    first = summary["files"][0]
    assert first["name"] == "first" and first["detections"] == comparison.files[0].num_detections
    assert first["segm"]["AP"] == comparison.files[0].by_iou_type["segm"].metrics["AP"]


def test_reliability_bins_by_hand(tmp_path):
    """One object, and four detections: the last is ignored, its image is not verified."""
    images = [
        {
            "id": i,
            "file_name": "x.png",
            "height": 100,
            "width": 100,
            "neg_category_ids": [1] if i == 2 else [],
            "not_exhaustive_category_ids": [],
        }
        for i in (1, 2, 3)
    ]
    box = [10, 10, 40, 40]
    write_json(
        {
            "images": images,
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600}],
            "categories": [{"id": 1, "name": "a", "image_count": 5}],
        },
        tmp_path / "gt.json",
    )
    detections = [(1, 0.95), (2, 0.93), (1, 0.31), (3, 0.5)]
    records = [{"image_id": i, "category_id": 1, "bbox": box, "score": s} for i, s in detections]
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    comparison = compare(tmp_path / "gt.json", [tmp_path / "x.json.gz"], details=True)
    bins = comparison.files[0].by_iou_type["bbox"].reliability["r"]
    assert bins.counts.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert bins.precisions[[3, 9]].tolist() == [0, 0.5]  # image 1 twice, then the negative image 2
    assert bins.mean_scores[9] == pytest.approx(0.94)


@pytest.mark.parametrize(
    "paths, names",
    [
        (["out/a.json"], ["a"]),
        (["out/a.json", "out/b.json.gz"], ["a", "b"]),
        (["x/inference/results.json", "y/inference/results.json"], ["x", "y"]),
        (["x/results.json", "x/inference/results.json"], ["results", "inference/results"]),
        (["p.pth", "p.pth"], ["p (1)", "p (2)"]),
        (["v1.0/r.json", "v1.5/r.json", "other/v1.0/r.json"], ["v1.0", "v1.5", "other/v1.0"]),
    ],
)
def test_short_names(paths, names):
    assert short_names(paths) == names
