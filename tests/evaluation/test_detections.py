import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apa_det.errors import UserError
from apa_det.evaluation import Detections, Masks


def rle(columns, height=7, width=9):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[:, :columns] = 1
    return mask_util.encode(mask)


def records(number, masks=True):
    return [
        {
            "image_id": 5 - i,
            "category_id": i % 3,
            "score": i / 8,
            "bbox": [i, 0.5, 2.25, 3],
            **({"segmentation": rle(i % 10)} if masks else {}),
        }
        for i in range(number)
    ]


def as_json(records):
    return [
        {**r, "segmentation": {**r["segmentation"], "counts": r["segmentation"]["counts"].decode()}}
        if "segmentation" in r
        else r
        for r in records
    ]


@pytest.mark.parametrize("masks", [True, False])
def test_records_round_trip(masks, tmp_path):
    detections = Detections.from_records(records(25, masks))
    assert list(detections.records(block=10)) == as_json(records(25, masks))
    assert list(Detections.from_records(as_json(records(25, masks))).records()) == as_json(
        records(25, masks)
    )
    (tmp_path / "results.json").write_text("an earlier file")
    detections.write(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == as_json(records(25, masks))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_no_detections(tmp_path):
    for empty in (Detections.from_records([]), Detections.concatenate([])):
        assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.masks is None
        empty.write(tmp_path / "empty.json")
        assert json.loads((tmp_path / "empty.json").read_text()) == []


indices = st.one_of(
    st.lists(st.integers(0, 11), max_size=20).map(lambda rows: np.array(rows, int)),
    st.lists(st.booleans(), min_size=12, max_size=12).map(np.array),
    st.slices(12),
)


@given(indices)
def test_selection(index):
    every = np.array(as_json(records(12)), object)
    assert list(Detections.from_records(records(12)).select(index).records()) == list(every[index])


@given(st.lists(st.integers(0, 4), max_size=5))
def test_concatenation(sizes):
    parts = [records(size) for size in sizes]
    joined = Detections.concatenate([Detections.from_records(part) for part in parts])
    assert list(joined.records()) == as_json([record for part in parts for record in part])


def test_masks():
    rles = [rle(i) for i in range(10)]
    masks = Masks.from_rles(rles)
    assert len(masks) == 10
    assert masks.rles() == rles
    assert masks.rles(np.array([3, 0, 3])) == [rles[3], rles[0], rles[3]]
    assert mask_util.area(masks.rles(slice(2, 4))[1]) == 3 * 7
    assert len(Masks.from_rles([])) == len(Masks.concatenate([])) == 0


def test_missing_keys():
    broken = records(3)
    del broken[1]["score"]
    with pytest.raises(UserError, match=r"Result 1 \(from 0\): score is missing"):
        Detections.from_records(broken)
    with pytest.raises(UserError, match="neither bbox nor segmentation"):
        Detections.from_records([{"image_id": 1, "category_id": 1, "score": 0.5}])
    for key, value in (("score", "0.5"), ("bbox", [1, 2, 3]), ("segmentation", rle(1, 7, 70_000))):
        broken = records(3)
        broken[2][key] = value
        with pytest.raises(UserError, match=rf"Result 2 \(from 0\): ({key}|width) must be"):
            Detections.from_records(broken)
    with pytest.raises(UserError, match="Some detections have masks"):
        Detections.concatenate(
            [Detections.from_records(records(2)), Detections.from_records(records(2, masks=False))]
        )
