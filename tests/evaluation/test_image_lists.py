"""Evaluation of a part of a dataset, with results of all of it."""

import gzip
import json

import pytest

from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, compare, read_image_ids
from apa_det.utils.json_files import read_json, write_json


@pytest.fixture
def part(detections_on_synthetic, tmp_path):
    """The ids of every third image, and the path of the annotation file of these images."""
    dataset = read_json(detections_on_synthetic.gt)
    ids = sorted(image["id"] for image in dataset["images"])[::3]
    for key, name in (("images", "id"), ("annotations", "image_id")):
        dataset[key] = [record for record in dataset[key] if record[name] in ids]
    write_json(dataset, tmp_path / "part.json")
    return ids, tmp_path / "part.json"


@pytest.mark.parametrize("whole_gt", [True, False])
def test_results_of_the_whole_set(detections_on_synthetic, part, tmp_path, caplog, whole_gt):
    """They give the metrics of results of the part alone."""
    ids, part_file = part
    caplog.set_level("INFO", logger="apa_det")
    records = read_json(detections_on_synthetic.results[0])
    own = [record for record in records if record["image_id"] in ids]
    write_json(own, tmp_path / "own.json")
    expected = compare(part_file, [tmp_path / "own.json"], details=True)
    gt = detections_on_synthetic.gt if whole_gt else part_file
    [whole] = detections_on_synthetic.results[:1]
    comparison = compare(gt, [whole], image_ids=part_file, details=True)
    left_out = len(records) - len(own)
    assert comparison.files[0].num_left_out == left_out > 0
    assert caplog.text.count(f"{left_out} of {len(records)} detections are on images") == 1
    for iou_type in ("bbox", "segm"):
        results, of_part = (c.files[0].by_iou_type[iou_type] for c in (comparison, expected))
        assert results.metrics == pytest.approx(of_part.metrics, nan_ok=True)
        assert results.agnostic_recall == pytest.approx(of_part.agnostic_recall, nan_ok=True)
    assert f"{len(ids)} images of {part_file}" in comparison.describe()


def test_results_of_the_whole_set_need_the_list(detections_on_synthetic, part):
    with pytest.raises(UserError, match="image_id must be an image id.*list them by --image-ids"):
        compare(part[1], detections_on_synthetic.results)


def test_formats_of_a_list(detections_on_synthetic, part, tmp_path):
    ids, part_file = part
    truth = GroundTruth.from_file(detections_on_synthetic.gt)
    texts = {
        "lines.txt": "\n".join(map(str, reversed(ids))),
        "commas.csv": "\ufeff" + ", ".join(map(str, [*ids, ids[0]])),
        "list.json": json.dumps(ids),
        "texts.json": json.dumps([str(i) for i in ids]),
    }
    files = [part_file, tmp_path / "part.json.gz"]
    files[1].write_bytes(gzip.compress(part_file.read_bytes()))
    for name, text in texts.items():
        files.append(tmp_path / name)
        files[-1].write_text(text, encoding="utf-8")
    for file in files:
        assert read_image_ids(file, truth).tolist() == ids, file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must contain image ids as a JSON list, as text"),
        ("[]", "must contain image ids"),
        ('{"image_ids": [1]}', "must contain image ids"),
        ("1\n2\nx.jpg\n", r"image 2 \(from 0\): id must be an integer, got 'x.jpg'"),
        ("[1, 2.5]", r"image 1 \(from 0\): id must be an integer, got 2.5"),
        ("[true]", "id must be an integer"),
        ('[{"image_id": 1}]', "id is missing"),
        ("1 99999 99998", "lists 2 of 3 images that are not in the ground truth, e.g. id 99998"),
    ],
)
def test_invalid_lists(detections_on_synthetic, tmp_path, text, message):
    (tmp_path / "ids").write_text(text)
    with pytest.raises(UserError, match=message):
        compare(
            detections_on_synthetic.gt,
            detections_on_synthetic.results,
            image_ids=tmp_path / "ids",
        )


def test_results_of_another_dataset(detections_on_synthetic, part, tmp_path):
    ids, part_file = part
    records = read_json(detections_on_synthetic.results[0])
    others = [record for record in records if record["image_id"] not in ids]
    write_json(others, tmp_path / "others.json")
    for gt in (detections_on_synthetic.gt, part_file):
        with pytest.raises(UserError, match=rf"none on the {len(ids)} images to evaluate"):
            compare(gt, [tmp_path / "others.json"], image_ids=part_file)
    records[5]["image_id"] = 10**6
    write_json(records, tmp_path / "unknown.json")
    with pytest.raises(UserError, match=r"record 5 \(from 0\): image_id must be an image id"):
        compare(detections_on_synthetic.gt, [tmp_path / "unknown.json"], image_ids=part_file)


def test_no_annotations_on_the_images(detections_on_synthetic, tmp_path):
    dataset = read_json(detections_on_synthetic.gt)
    first = dataset["images"][0]["id"]
    annotations = [a for a in dataset["annotations"] if a["image_id"] != first]
    write_json({**dataset, "annotations": annotations}, tmp_path / "gt.json")
    (tmp_path / "ids").write_text(str(first))
    with pytest.raises(UserError, match="no annotations to evaluate on the images of .*ids"):
        compare(tmp_path / "gt.json", detections_on_synthetic.results, image_ids=tmp_path / "ids")
