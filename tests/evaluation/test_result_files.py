import gzip
import json
import pickle
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from apa_det.evaluation import GroundTruth, read_results, result_files
from apa_det.utils.json_stream import read_json_list

SIZES = {3: (20, 30), 9: (40, 50)}  # height, width of the pictures
POLYGON = [[2, 2, 12, 2, 12, 12, 2, 12]]


def ground_truth(masks=True):
    """Pictures 3 and 9, categories 5 and 70."""
    segmentation = {"segmentation": POLYGON} if masks else {}
    return GroundTruth.from_dataset(
        {
            "images": [
                {
                    "id": i,
                    "file_name": f"{i}.png",
                    "height": height,
                    "width": width,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                for i, (height, width) in SIZES.items()
            ],
            "categories": [{"id": i, "name": f"c{i}", "image_count": 1} for i in (5, 70)],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 3,
                    "category_id": 5,
                    "bbox": [2, 2, 10, 10],
                    "area": 100,
                    **segmentation,
                }
            ],
        }
    )


def mask(image_id, corner=2):
    square = np.zeros(SIZES[image_id], np.uint8, order="F")
    square[corner : corner + 10, corner : corner + 10] = 1
    rle = mask_util.encode(square)
    return {"size": list(SIZES[image_id]), "counts": rle["counts"].decode()}


def result(image_id=3, category_id=5, score=0.5, masks=True, **fields):
    segmentation = {"segmentation": mask(image_id)} if masks else {}
    record = {"image_id": image_id, "category_id": category_id, "score": score}
    return {**record, "bbox": [2, 2, 10, 10], **segmentation, **fields}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.json"


def read(file, records, iou_types=None, masks=True):
    file.write_text(json.dumps(records))
    return read_results(file, ground_truth(masks), iou_types)


RECORDS = [
    result(),
    result(9, 70, 0.25, bbox=[1.5, 2.5, 3.25, 4]),
    result(3, 70, 1, bbox=[0, 0, 0, 0]),
]


def same(a, b):
    assert a.image_ids.tolist() == b.image_ids.tolist()
    assert a.category_ids.tolist() == b.category_ids.tolist()
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-6)
    assert a.masks.rles() == b.masks.rles()


def test_json(file):
    found = read(file, RECORDS)
    assert found.image_ids.tolist() == [3, 9, 3] and found.category_ids.tolist() == [5, 70, 70]
    assert found.scores.tolist() == [0.5, 0.25, 1]
    assert found.boxes.tolist() == [[2, 2, 10, 10], [1.5, 2.5, 3.25, 4], [0, 0, 0, 0]]
    assert [rle["size"] for rle in found.masks.rles()] == [[20, 30], [40, 50], [20, 30]]
    assert mask_util.area(found.masks.rles()).tolist() == [100, 100, 100]


def test_gzip_equals_json_whatever_its_name(file, tmp_path):
    plain = read(file, RECORDS)
    for name in ("results.json.gz", "results.json"):
        (tmp_path / name).write_bytes(gzip.compress(json.dumps(RECORDS).encode()))
        same(read_results(tmp_path / name, ground_truth()), plain)


def test_detectron2s_predictions_equal_json(file, tmp_path):
    """Its evaluators save classes as indices from 0."""
    pictures, records = [], []
    for image_id, classes in ((3, [0, 1]), (9, [1])):
        instances = Instances(SIZES[image_id])
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 12, 12]] * len(classes)))
        instances.scores = torch.tensor([0.7, 0.3][: len(classes)])
        instances.pred_classes = torch.tensor(classes)
        instances.pred_masks = torch.zeros(len(classes), *SIZES[image_id], dtype=torch.bool)
        instances.pred_masks[:, 2:12, 2:12] = True
        found = instances_to_coco_json(instances, image_id)
        pictures.append({"image_id": image_id, "instances": found})
        records += [{**r, "category_id": (5, 70)[r["category_id"]]} for r in found]
    torch.save(pictures, tmp_path / "instances_predictions.pth")
    same(read_results(tmp_path / "instances_predictions.pth", ground_truth()), read(file, records))

    pictures[1]["instances"][0]["category_id"] = 2
    torch.save(pictures, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth: record 2 \(from 0\) .* indices from 0 to 1"):
        read_results(tmp_path / "bad.pth", ground_truth())


class _Code:
    def __reduce__(self):
        return (pytest.fail, ("code of the file was run",))


def test_code_in_a_file_is_not_run(tmp_path):
    for name, write in (
        ("a.pth", torch.save),
        ("b.pth", lambda x, f: f.write_bytes(pickle.dumps(x))),
    ):
        write([{"image_id": 3, "instances": [_Code()]}], tmp_path / name)
        with pytest.raises(
            ValueError, match=f"{name} (holds more than lists|is cut off or broken)"
        ):
            read_results(tmp_path / name, ground_truth())


def test_predictions_that_are_none(tmp_path):
    path = tmp_path / "a.pth"
    torch.save([{"image_id": 3}], path)
    with pytest.raises(ValueError, match=r"a.pth: entry 0 \(from 0\) has no list of instances"):
        read_results(path, ground_truth())
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="a.pth holds a dict, not a list"):
        read_results(path, ground_truth())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="a.pth is cut off or broken"):
        read_results(path, ground_truth())


def test_masks_in_every_form(file):
    uncompressed = {"size": [20, 30], "counts": [42, 10] + [10, 10] * 9 + [368]}
    forms = [mask(3), uncompressed, [[2, 2, 12, 2, 12, 12, 2, 12]]]
    rles = read(file, [result(segmentation=form) for form in forms]).masks.rles()
    assert rles[0] == rles[1] == rles[2]


def test_boxes_of_masks(file):
    records = [{k: v for k, v in record.items() if k != "bbox"} for record in RECORDS]
    records[1]["segmentation"] = mask(9, corner=7)
    found = read(file, records)
    assert found.boxes.tolist() == [[2, 2, 10, 10], [7, 7, 10, 10], [2, 2, 10, 10]]
    assert read(file, records, ["bbox"]).masks is None
    assert read(file, records, ["segm"]).boxes is None
    assert read(file, records, masks=False).masks is None


def test_no_detection(file):
    found = read(file, [])
    assert len(found) == len(found.boxes) == len(found.masks) == 0


def test_ids_written_as_floats(file):
    assert read(file, [result(3.0, 70.0)]).category_ids.tolist() == [70]


BAD = {
    "unknown picture": ({"image_id": 4}, "has the image_id 4, which no picture"),
    "picture without number": ({"image_id": "3"}, "has the image_id '3', which no picture"),
    "unknown category": ({"category_id": 0}, "has the category_id 0, .* not class indices"),
    "NaN": ({"score": float("nan")}, "has the score nan: it must be a finite number"),
    "infinite": ({"score": float("-inf")}, "has the score -inf: it must"),
    "no score": ({"score": None}, "has the score None: it must"),
    "score as text": ({"score": "0.5"}, "has the score '0.5': it must"),
    "negative width": ({"bbox": [2, 2, -1, 5]}, r"has the bbox \[2, 2, -1, 5\] of negative size"),
    "negative height": ({"bbox": [2, 2, 1, -5]}, "of negative size"),
    "NaN box": ({"bbox": [2, 2, float("nan"), 5]}, "has the bbox .* it needs"),
    "short box": ({"bbox": [2, 2, 5]}, "has the bbox .* it needs"),
    "no box": ({"bbox": None}, "has the bbox None: it needs"),
    "mask of another picture": (
        {"segmentation": mask(9)},
        r"of the size \[40, 50\], not \[20, 30\]",
    ),
    "runs of another picture": (
        {"segmentation": {"size": [20, 30], "counts": [2000]}},
        "counts do not cover its image",
    ),
    "mask without size": ({"segmentation": {"counts": "abc"}}, "of the size None"),
    "mask without counts": ({"segmentation": {"size": [20, 30]}}, "counts do not cover"),
    "no mask": ({"segmentation": None}, "has an empty segmentation"),
    "broken polygon": ({"segmentation": [[1, 2, 3, 4]]}, "with a polygon that is not"),
}


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("name", BAD)
def test_bad_record(file, name, place):
    fields, message = BAD[name]
    records = list(RECORDS)
    records[place] = {**records[place], **fields}
    with pytest.raises(
        ValueError, match=rf"^{file}: record {place} \(from 0\) .*{message}"
    ) as error:
        read(file, records)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox", "segmentation"])
def test_missing_key(file, key):
    records = list(RECORDS)
    records[1] = {k: v for k, v in records[1].items() if k != key}
    with pytest.raises(ValueError, match=rf"record 1 \(from 0\) has no {key}: a detection needs"):
        read(file, records)


def test_neither_box_nor_mask(file):
    bare = {"image_id": 3, "category_id": 5, "score": 0.5}
    with pytest.raises(ValueError, match="has no bbox: a detection needs .* score and bbox"):
        read(file, [bare])
    with pytest.raises(ValueError, match="has no segmentation"):
        read(file, [result(masks=False)], ["segm"])


def test_record_that_is_no_object(file):
    for records in ([[3, 5, 0.5]], [None], [result(), "x"]):
        with pytest.raises(ValueError, match=r"record \d \(from 0\) is .*, not an object"):
            read(file, records)


def test_the_place_is_counted_over_blocks(file, monkeypatch):
    monkeypatch.setattr(result_files, "read_json_list", partial(read_json_list, block=512))
    records = [result() for _ in range(100)]
    records[97] = result(score=float("nan"))
    file.write_text(json.dumps(records))
    with pytest.raises(ValueError, match="record 97 "):
        read_results(file, ground_truth())


def test_cut_off(file):
    file.write_text(json.dumps(RECORDS)[:-20])
    with pytest.raises(ValueError, match="results.json is cut off"):
        read_results(file, ground_truth())


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
        read_results(tmp_path / "nowhere.json", ground_truth())
