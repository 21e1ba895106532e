import gzip
import json
import os
import pickle
import zipfile
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from apa_det.errors import MissingFileError, UserError
from apa_det.evaluation import GroundTruth, read_results, result_files
from apa_det.utils.json_stream import read_json_list

SIZES = {3: (20, 30), 9: (40, 50)}  # height and width by image id
POLYGON = [[2, 2, 12, 2, 12, 12, 2, 12]]


def ground_truth(masks=True):
    """Ground truth of images 3 and 9, categories 5 and 70."""
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
    detections = read(file, RECORDS)
    assert detections.image_ids.tolist() == [3, 9, 3]
    assert detections.category_ids.tolist() == [5, 70, 70]
    assert detections.scores.tolist() == [0.5, 0.25, 1]
    assert detections.boxes.tolist() == [[2, 2, 10, 10], [1.5, 2.5, 3.25, 4], [0, 0, 0, 0]]
    assert [rle["size"] for rle in detections.masks.rles()] == [[20, 30], [40, 50], [20, 30]]
    assert mask_util.area(detections.masks.rles()).tolist() == [100, 100, 100]


def test_archives_equal_json_with_any_file_name(file, tmp_path):
    plain = read(file, RECORDS)
    data = json.dumps(RECORDS).encode("utf-8-sig")
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("results.json", data)
    archived = (tmp_path / "archive").read_bytes()
    for name in ("results.json.gz", "results.json", "results.json.zip"):
        for content in (gzip.compress(data), archived, data):
            (tmp_path / name).write_bytes(content)
            same(read_results(tmp_path / name, ground_truth()), plain)


def test_detectron2_predictions_equal_json(file, tmp_path):
    """detectron2's evaluators save class indices."""
    images, records = [], []
    for image_id, classes in ((3, [0, 1]), (9, [1])):
        instances = Instances(SIZES[image_id])
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 12, 12]] * len(classes)))
        instances.scores = torch.tensor([0.7, 0.3][: len(classes)])
        instances.pred_classes = torch.tensor(classes)
        instances.pred_masks = torch.zeros(len(classes), *SIZES[image_id], dtype=torch.bool)
        instances.pred_masks[:, 2:12, 2:12] = True
        detections = instances_to_coco_json(instances, image_id)
        images.append({"image_id": image_id, "instances": detections})
        records += [{**r, "category_id": (5, 70)[r["category_id"]]} for r in detections]
    torch.save(images, tmp_path / "instances_predictions.pth")
    same(read_results(tmp_path / "instances_predictions.pth", ground_truth()), read(file, records))

    images[1]["instances"][0]["category_id"] = 2
    torch.save(images, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad.pth: record 2 \(from 0\): .* from 0 to 1, got 2"):
        read_results(tmp_path / "bad.pth", ground_truth())


class _Code:
    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return self.function, ("code of the file was run",)


@pytest.mark.parametrize(
    "function, message",
    [(pytest.fail, "contains objects of .*_Fail"), (os.system, "would call posix.system")],
)
def test_code_in_a_file_is_not_run(tmp_path, function, message):
    for name, legacy in (("a.pth", False), ("b.pth", True)):
        content = [{"image_id": 3, "instances": [_Code(function)]}]
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=f"{name} {message}"):
            read_results(tmp_path / name, ground_truth())


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickle_is_not_loaded(tmp_path, protocol):
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps(RECORDS, protocol))
    with pytest.raises(UserError, match="results.pkl is a Python pickle.* not loaded.* as JSON"):
        read_results(path, ground_truth())


def test_numpy_scalars(file, tmp_path):
    record = {**RECORDS[0], "category_id": 0, "score": np.float64(RECORDS[0]["score"])}
    path = tmp_path / "instances_predictions.pth"
    torch.save([{"image_id": 3, "instances": [record]}], path)
    same(read_results(path, ground_truth()), read(file, RECORDS[:1]))


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox", "segmentation"])
def test_tensors_are_refused(tmp_path, key):
    path = tmp_path / "instances_predictions.pth"
    record = {**result(category_id=0), key: torch.zeros(1).expand(4)}
    torch.save([{"image_id": 3, "instances": [record]}], path)
    with pytest.raises(UserError, match=rf"record 0 \(from 0\): {key} .* object of type Tensor"):
        read_results(path, ground_truth())


def test_invalid_predictions(tmp_path):
    path = tmp_path / "a.pth"
    torch.save([{"image_id": 3}], path)
    with pytest.raises(UserError, match=r"a.pth: entry 0 \(from 0\) has no list of instances"):
        read_results(path, ground_truth())
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="a.pth contains a dict; expected"):
        read_results(path, ground_truth())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="a.pth is not a result file, or is damaged"):
        read_results(path, ground_truth())


def test_mask_formats(file):
    uncompressed = {"size": [20, 30], "counts": [42, 10] + [10, 10] * 9 + [368]}
    forms = [mask(3), uncompressed, [[2, 2, 12, 2, 12, 12, 2, 12]]]
    rles = read(file, [result(segmentation=form) for form in forms]).masks.rles()
    assert rles[0] == rles[1] == rles[2]


def test_boxes_of_masks(file):
    records = [{k: v for k, v in record.items() if k != "bbox"} for record in RECORDS]
    records[1]["segmentation"] = mask(9, corner=7)
    detections = read(file, records)
    assert detections.boxes.tolist() == [[2, 2, 10, 10], [7, 7, 10, 10], [2, 2, 10, 10]]
    assert read(file, records, ["bbox"]).masks is None
    assert read(file, records, ["segm"]).boxes is None
    assert read(file, records, masks=False).masks is None


def test_no_detection(file):
    detections = read(file, [])
    assert len(detections) == len(detections.boxes) == len(detections.masks) == 0


def test_float_ids(file):
    assert read(file, [result(3.0, 70.0)]).category_ids.tolist() == [70]


def rle(counts, size=(20, 30)):
    return {"segmentation": {"size": list(size), "counts": counts}}


BAD = {
    "unknown image": ({"image_id": 4}, "image_id must be an image id of the ground truth, got 4"),
    "image id as text": ({"image_id": "3"}, "image_id must be .*, got '3'"),
    "image id beyond 64 bits": (
        {"image_id": 2**63},
        "image_id must be .*, got 922337203",
    ),
    "image id as fraction": ({"image_id": 3.5}, "image_id must be .*, got 3.5"),
    "image id as list": ({"image_id": [3]}, r"image_id must be .*, got \[3\]"),
    "unknown category": ({"category_id": 0}, "category_id must be .*, not a class index, got 0"),
    "category true": ({"category_id": True}, "category_id must be .*, got True"),
    "NaN": ({"score": float("nan")}, "score must be a finite number, got nan"),
    "infinite": ({"score": float("-inf")}, "score must be a finite number, got -inf"),
    "no score": ({"score": None}, "score must be .*, got None"),
    "score as text": ({"score": "0.5"}, "score must be .*, got '0.5'"),
    "score as list": ({"score": [0.5]}, r"score must be .*, got \[0.5\]"),
    "score true": ({"score": True}, "score must be .*, got True"),
    "huge score": ({"score": 10**400}, "score must be .*, got an integer of 1,329 bits"),
    "negative width": (
        {"bbox": [2, 2, -1, 5]},
        r"bbox must have .* got .2, 2, -1, 5.; conv",
    ),
    "negative height": ({"bbox": [2, 2, 1, -5]}, "bbox must have a width and height >= 0"),
    "NaN box": ({"bbox": [2, 2, float("nan"), 5]}, "bbox must be .*, got .2, 2, nan, 5."),
    "short box": ({"bbox": [2, 2, 5]}, "bbox must be .*, got .2, 2, 5."),
    "nested box": ({"bbox": [[2, 2, 5, 5]]}, "bbox must be .*, got ..2, 2, 5, 5.."),
    "huge box": ({"bbox": [2, 2, 10**400, 5]}, "bbox must be .*, got .2, 2, an integer of"),
    "no box": ({"bbox": None}, "bbox must be .*, got None"),
    "mask of another size": (
        {"segmentation": mask(9)},
        r"segmentation size must be .*\[20, 30\].*, got \[40, 50\]",
    ),
    "counts of another size": (rle([2000]), "segmentation counts .* 600 pixels .*, got .2000."),
    "negative run": (rle([-5, 605]), "segmentation counts .* >= 0 .*, got .-5, 605."),
    "huge run": (rle([2**70]), "segmentation counts"),
    "fraction of a run": (rle([300.5, 299.5]), "segmentation counts"),
    "no run": (rle([]), "segmentation counts"),
    "empty counts": (rle(""), "segmentation counts .*, got ''"),
    "counts of a smaller mask": (rle(mask(3)["counts"][:-2]), "segmentation counts"),
    "counts of a larger mask": (rle(mask(3)["counts"] + "1"), "segmentation counts"),
    "counts that go on": (rle(mask(3)["counts"] + "o"), "segmentation counts"),
    "counts of other characters": (rle("é" * 9), "segmentation counts"),
    "counts with a surrogate": (rle("\ud800"), "segmentation counts"),
    "text of bytes": (rle(str(b"hb0")), r"segmentation counts .*bytes.*; write counts.decode\(\)"),
    "mask without size": (
        {"segmentation": {"counts": "abc"}},
        "segmentation must be RLE",
    ),
    "mask without counts": ({"segmentation": {"size": [20, 30]}}, "segmentation must be RLE with"),
    "no mask": ({"segmentation": None}, "segmentation must be polygons or RLE, got None"),
    "empty mask": ({"segmentation": []}, "segmentation is empty"),
    "empty object": ({"segmentation": {}}, "segmentation must be RLE with size and counts"),
    "mask as text": ({"segmentation": "abc"}, "segmentation must be polygons or RLE, got 'abc'"),
    "broken polygon": ({"segmentation": [[1, 2, 3, 4]]}, "segmentation polygons must have"),
    "bare polygon": ({"segmentation": [1, 2, 3, 4, 5, 6]}, "segmentation must be a list of poly"),
    "odd polygon": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "segmentation polygons must have"),
    "far polygon": (
        {"segmentation": [[1, 2, 1e9, 4, 5, 6]]},
        "segmentation coordinates .*10000000",
    ),
    "NaN polygon": ({"segmentation": [[1, 2, float("nan"), 4, 5, 6]]}, "segmentation coordinates"),
    "polygon of text": ({"segmentation": [[1, 2, "3", 4, 5, 6]]}, "segmentation coordinates"),
    "long polygon": ({"segmentation": [[0, 0, 30, 20] * 80_000]}, "segmentation .* an outline of"),
}


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("name", BAD)
def test_invalid_record(file, name, index):
    fields, message = BAD[name]
    records = list(RECORDS)
    records[index] = {**records[index], **fields}
    with pytest.raises(UserError, match=rf"^{file}: record {index} \(from 0\): {message}") as error:
        read(file, records)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox", "segmentation"])
def test_missing_key(file, key):
    records = list(RECORDS)
    records[1] = {k: v for k, v in records[1].items() if k != key}
    with pytest.raises(
        UserError, match=rf"record 1 \(from 0\): {key} is missing; a detection needs"
    ):
        read(file, records)


@pytest.mark.parametrize("key", ["bbox", "segmentation"])
def test_first_record_without_a_key_of_others(file, monkeypatch, key):
    """Also if the others are read later."""
    monkeypatch.setattr(result_files, "read_json_list", partial(read_json_list, block=512))
    first = [{k: v for k, v in result().items() if k != key} for _ in range(20)]
    with pytest.raises(
        UserError, match=rf"record 0 \(from 0\): {key} is missing, but record 20 has one"
    ):
        read(file, [*first, *RECORDS])
    if key == "segmentation":  # these are not read
        assert read(file, [*first, *RECORDS], masks=False).masks is None
        assert read(file, [*first, *RECORDS], ["bbox"]).masks is None


def test_neither_box_nor_mask(file):
    bare = {"image_id": 3, "category_id": 5, "score": 0.5}
    with pytest.raises(UserError, match="bbox is missing; a detection needs .* score and bbox"):
        read(file, [bare])
    with pytest.raises(UserError, match="segmentation is missing"):
        read(file, [result(masks=False)], ["segm"])


def test_record_that_is_not_an_object(file):
    for records in ([[3, 5, 0.5]], [None], [result(), "x"]):
        with pytest.raises(UserError, match=r"record \d \(from 0\): it must be an object .* got"):
            read(file, records)


@pytest.mark.parametrize(
    "boxes, hint",
    [
        (
            [[10, 10, 28, 18], [2, 2, 8, 8]],
            "1 of 2 boxes reach beyond their image: are they",
        ),
        ([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], "2 of 2 boxes are smaller than a pixel: are they"),
        ([[2, 2, 10, 10], [25, 15, 6, 6]], None),  # not clipped
        ([[0, 0, 30, 20], [0, 0, 0, 0]], None),
        ([[0, 0, 0, 0]], None),
    ],
)
def test_boxes_in_another_format(file, caplog, boxes, hint):
    read(file, [result(bbox=box) for box in boxes])
    assert (f"{file}: {hint}" in caplog.text) if hint else not caplog.text


def test_record_index_over_several_blocks(file, monkeypatch):
    monkeypatch.setattr(result_files, "read_json_list", partial(read_json_list, block=512))
    records = [result() for _ in range(100)]
    records[97] = result(score=float("nan"))
    file.write_text(json.dumps(records))
    with pytest.raises(UserError, match="record 97 "):
        read_results(file, ground_truth())


def test_truncated_file(file):
    file.write_text(json.dumps(RECORDS)[:-20])
    with pytest.raises(UserError, match="results.json is cut off"):
        read_results(file, ground_truth())


def test_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.json does not exist"):
        read_results(tmp_path / "nowhere.json", ground_truth())


def by_name(name, category="c70", **fields):
    """Return a record of the demo, whose ids are not those of the ground truth."""
    record = result(image_id=9, category_id=0, masks=False)
    return {**record, "image_id": 0, "file_name": name, "category_name": category, **fields}


def nested_truth(*names):
    truth = ground_truth()
    for image, name in zip(truth.images, names, strict=True):
        image["file_name"] = name
    return truth


@pytest.mark.parametrize(
    "path, image_id",
    [
        ("data/val/1.jpg", 3),
        ("/data/b/../val/1.jpg", 3),
        ("C:\\data\\val\\1.jpg", 3),
        ("train/1.jpg", 9),
        ("2/train/1.jpg", 9),
        ("1.jpg", None),  # of both
        ("test/2.jpg", None),
    ],
)
def test_results_of_the_demo(file, path, image_id, caplog):
    """Images go by the end of their path, categories by name, whatever the ids are."""
    truth = nested_truth("val/1.jpg", "train/1.jpg")
    file.write_text(json.dumps([by_name(path), by_name(path, "c5")]))
    if image_id is None:
        with pytest.raises(UserError, match="record 0 .from 0.: file_name must .* run the demo on"):
            read_results(file, truth)
        return
    caplog.set_level("INFO")
    detections = read_results(file, truth)
    assert detections.image_ids.tolist() == [image_id] * 2
    assert detections.category_ids.tolist() == [70, 5]
    assert "detections in 1 of 2 images of the ground truth" in caplog.text
    assert "its lowest score is 0.5: run the demo with --confidence-threshold 0." in caplog.text


def test_odd_results_of_the_demo(file):
    truth = nested_truth("val/1.jpg", "val/2.jpg")
    for records, message in (
        ([by_name("2.jpg", "dog")], "category_name must be a category of the ground truth, got 'd"),
        ([by_name("2.jpg"), result()], "record 1 .from 0.: file_name is missing; write it for all"),
        ([by_name(7)], "file_name must be a path, got 7"),
        ([by_name("clip.mp4", frame=3)], "got 'clip.mp4'; run the demo on images of the ground"),
    ):
        file.write_text(json.dumps(records))
        with pytest.raises(UserError, match=message):
            read_results(file, truth)
    file.write_text(json.dumps([by_name("elsewhere/2.jpg")]))  # a copy of the only 2.jpg
    assert read_results(file, truth).image_ids.tolist() == [9]
    plain = [{**result(), "file_name": "of another tool"}]  # ids count without category_name
    file.write_text(json.dumps(plain))
    assert read_results(file, truth).image_ids.tolist() == [3]
