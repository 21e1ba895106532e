"""Ground truth whose polygons stay text equals the one of the file that is read as a whole."""

import copy
import gzip
import json

import numpy as np
import pytest

from apa_det.data.validation import read_coco_or_lvis_json
from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, mask_texts
from apa_det.evaluation.mask_texts import MaskTexts, read_truth_json

SQUARE = [[10, 10, 50, 10, 50, 50.25, 10.5, 50]]
RLE = {"size": [80, 90], "counts": [7200]}


def dataset(segmentations, **fields):
    ids = {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    images = [{"id": i, "file_name": "a.jpg", "height": 80, "width": 90, **ids} for i in (7, 5)]
    annotation = {"category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600.5}
    annotations = [
        {"id": i, "image_id": (7, 5)[i % 2], **annotation, "segmentation": s, **fields}
        for i, s in enumerate(segmentations)
    ]
    categories = [{"id": i, "name": f"c{i}", "image_count": i} for i in (3, 2)]
    return {"images": images, "annotations": annotations, "categories": categories}


def same(path):
    """Assert that both ways of reading give the same, and return the ground truth."""
    truth, whole = (
        GroundTruth.from_file(path),
        GroundTruth.from_dataset(read_coco_or_lvis_json(path)),
    )
    for name, value in vars(whole).items():
        found = getattr(truth, name)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype and np.array_equal(found, value), name
        elif name == "segmentations" and value is not None:
            assert list(found) == value and [found[i] for i in range(len(found))] == value
        else:
            assert found == value, name
    return truth


def test_real_annotations(lvis_val_100, monkeypatch):
    monkeypatch.setattr(mask_texts, "_BLOCK", 7)
    truth = same(lvis_val_100)
    assert isinstance(truth.segmentations, MaskTexts)
    part = truth.restricted_to(truth.image_ids[::3]).restricted_to(truth.image_ids[3::6])
    rows = np.flatnonzero(np.isin(truth.annotation_images, np.arange(len(truth.image_ids))[3::6]))
    assert list(part.segmentations) == [truth.segmentations[i] for i in rows.tolist()]


@pytest.mark.parametrize(
    "segmentations, is_text",
    [
        ([SQUARE, SQUARE * 2], True),
        ([[[1e-3, -2, 50, 10.123, 50, 50]], SQUARE], True),  # parsed as JSON
        ([SQUARE, RLE], False),
        ([None, None], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 1}])
def test_forms(tmp_path, segmentations, is_text, style):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(dataset(segmentations), **style))
    truth = same(path)
    assert isinstance(truth.segmentations, MaskTexts) == (is_text and "indent" not in style)
    path.write_bytes(gzip.compress(path.read_bytes()))
    same(path)


def test_similar_keys_elsewhere(tmp_path):
    """Escaped quotes in text, and polygons in another object."""
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(dataset([SQUARE, SQUARE], note='"segmentation": [[1, 2]]')))
    assert isinstance(same(path).segmentations, MaskTexts)
    path.write_text(json.dumps(dataset([SQUARE, SQUARE], other={"segmentation": SQUARE})))
    assert not isinstance(same(path).segmentations, MaskTexts)
    content = dataset([SQUARE, SQUARE])
    content["images"][0]["segmentation"] = SQUARE
    path.write_text(json.dumps(content))
    assert not isinstance(same(path).segmentations, MaskTexts)


def test_coco_format(tmp_path):
    content = dataset([SQUARE, SQUARE])
    for image in content["images"]:
        del image["neg_category_ids"]
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(content))
    assert same(path).verified is None


@pytest.mark.parametrize(
    "bad",
    [
        [[10, 10, 50, 10]],
        [[10, 10, 50, 10, 50, 50, 1]],
        [[10, 10, 50, 10, 5000, 50]],
        [[10, 10, 50, 10, 50, "50"]],
        [[10, 10, 50, 10, 50, 50, float("nan"), 3]],
        [[10, 10, 50, 10, 50, 50], 3],
    ],
)
def test_invalid_mask(tmp_path, bad):
    """It is an error once masks are used: that of reading the whole file."""
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(dataset([SQUARE, bad])))
    with pytest.raises(UserError) as expected:
        read_coco_or_lvis_json(path)
    assert "annotation 1: segmentation" in str(expected.value)
    with pytest.raises(UserError) as error:
        list(GroundTruth.from_file(path).segmentations)
    assert str(error.value) == str(expected.value)


@pytest.mark.parametrize("change", [{"area": -1}, {"image_id": 99}, {"bbox": [1]}])
def test_other_problems_are_errors_at_once(tmp_path, change):
    content = copy.deepcopy(dataset([SQUARE, SQUARE]))
    content["annotations"][1].update(change)
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"annotation 1: {next(iter(change))}"):
        read_truth_json(path)
    path.write_text(json.dumps(content)[:-30])
    with pytest.raises(UserError, match="is cut off"):
        read_truth_json(path)
