"""The fast engine returns the arrays of lvis-api, not only its metrics."""

import copy
import json
import sys
import tracemalloc

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apa_det.evaluation
from apa_det.errors import MissingPackageError, UserError
from apa_det.evaluation import Detections, GroundTruth, evaluate, load_engine, selection
from apa_det.evaluation.engines import _log_fallback
from apa_det.evaluation.selection import find, select

fast_engine = pytest.importorskip("apa_det.evaluation.fast_engine")

HEIGHT, WIDTH = 40, 60


def assert_same(truth, detections, iou_type, **limits):
    fast, lvis = (
        evaluate(truth, detections, iou_type, engine=name, matches=True, **limits)
        for name in ("fast", "lvis")
    )
    assert (fast.engine, lvis.engine) == ("fast", "lvis")
    assert np.array_equal(fast.precision, lvis.precision)
    assert np.array_equal(fast.recall, lvis.recall)
    assert len(fast.metrics()) == 13
    assert fast.metrics() == pytest.approx(lvis.metrics(), abs=1e-9, nan_ok=True)
    for name, values in vars(fast.matches).items():
        assert np.array_equal(values, getattr(lvis.matches, name)), name
    return fast


def random_detections(truth, number, seed=0):
    """Draw objects with replacement, perturb them, and give some a wrong category."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(truth.boxes), size=number)
    wrong = rng.random(number) < 0.4
    categories = truth.annotation_categories[
        np.where(wrong, rng.integers(len(truth.boxes), size=number), rows)
    ]
    masks = []
    for row, scale in zip(rows.tolist(), rng.uniform(0.9, 1.1, number), strict=True):
        height, width = truth.image_sizes[truth.annotation_images[row]].tolist()
        polygons = [(np.array(p) * scale).tolist() for p in truth.segmentations[row]]
        masks.append(mask_util.merge(mask_util.frPyObjects(polygons, height, width)))
    boxes = truth.boxes[rows] * rng.uniform(0.85, 1.15, (number, 4))
    scores = rng.choice([0.25, 0.5, 0.75], number)  # with ties
    scores[::2] = rng.random(len(scores[::2]))
    return Detections.from_records(
        [
            {"image_id": image, "category_id": category, "score": s, "bbox": b, "segmentation": m}
            for image, category, s, b, m in zip(
                truth.image_ids[truth.annotation_images[rows]].tolist(),
                truth.category_ids[categories].tolist(),
                scores.tolist(),
                boxes.tolist(),
                masks,
                strict=True,
            )
        ]
    )


@pytest.fixture(scope="module")
def real(lvis_val_100):
    return GroundTruth.from_file(lvis_val_100)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_real_annotations(real, iou_type, monkeypatch):
    monkeypatch.setattr(fast_engine, "_MASKS_AT_ONCE", 500)  # several ranges
    detections = random_detections(real, 4000)
    metrics = assert_same(real, detections, iou_type).metrics()
    assert 0 < metrics["APr"] < 1 and 0 < metrics["APc"] < 1 and 0 < metrics["AR@300"] < 1


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_detection_limits(real, iou_type):
    truth = real.restricted_to(real.image_ids[:4])
    detections = random_detections(truth, 3000)
    assert np.bincount(np.searchsorted(truth.image_ids, detections.image_ids)).min() > 300
    full = assert_same(truth, detections, iou_type, max_dets=None)
    assert assert_same(truth, detections, iou_type).metrics()["AP"] != full.metrics()["AP"]
    assert_same(truth, detections, iou_type, max_dets=None, max_dets_per_category=15)


# Generated cases. Integer coordinates, so that IoUs tie and equal the thresholds.

boxes = st.tuples(
    st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(0, 50), st.integers(0, 50)
).map(lambda b: [b[0], b[1], min(b[2], WIDTH - b[0]), min(b[3], HEIGHT - b[1])])
images = st.integers(0, 2)
categories = st.integers(0, 2)
scores = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
lists = st.lists(categories, max_size=3, unique=True)
areas = st.one_of(st.none(), st.sampled_from([0, 1, 32**2, 32**2 + 1, 96**2, 2e10]))


def segmentation(box, kind):
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    rle = mask_util.frPyObjects([polygon], HEIGHT, WIDTH)[0]
    if kind == "polygons":  # overlapping
        half = [x, y, x + width / 2, y, x + width / 2, y + height, x, y + height]
        return [polygon, half]
    if kind == "uncompressed":
        flat = mask_util.decode(rle).ravel(order="F")
        starts = np.flatnonzero(np.diff(flat, prepend=0))
        counts = np.diff(starts, prepend=0, append=flat.size)
        return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@st.composite
def cases(draw):
    num_categories = draw(st.integers(1, 3))
    ids = [30, 7, 12][:num_categories]
    annotations = draw(
        st.lists(
            st.tuples(
                images,
                categories,
                boxes,
                areas,
                st.booleans(),
                st.sampled_from(["polygons", "uncompressed", "compressed"]),
            ),
            max_size=8,
        )
    )
    dataset = {
        "images": [
            {
                "id": 100 - i,  # descending: file order differs from id order
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": [ids[k] for k in draw(lists) if k < num_categories],
                "not_exhaustive_category_ids": [ids[k] for k in draw(lists) if k < num_categories],
            }
            for i in range(3)
        ],
        "categories": [
            {"id": i, "image_count": 5, "frequency": f}
            for i, f in zip(ids, draw(st.permutations("rcf")), strict=False)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 100 - image,
                "category_id": ids[category % num_categories],
                "bbox": box,
                "area": box[2] * box[3] if area is None else area,
                "ignore": int(ignore and n % 3 == 0),
                "segmentation": segmentation(box, kind),
            }
            for n, (image, category, box, area, ignore, kind) in enumerate(annotations)
        ],
    }
    near = [a["bbox"] for a in dataset["annotations"]]
    detected = st.one_of(boxes, st.sampled_from(near)) if near else boxes
    detections = [
        {
            "image_id": 100 - image,
            "category_id": ids[category % num_categories],
            "score": score,
            "bbox": box,
            "segmentation": segmentation(box, "compressed"),
        }
        for image, category, score, box in draw(
            st.lists(st.tuples(images, categories, scores, detected), max_size=14)
        )
    ]
    return dataset, detections


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([None, 3, 300]), st.sampled_from([None, 4]))
def test_generated_cases(case, max_dets, max_dets_per_category):
    dataset, records = case
    truth = GroundTruth.from_dataset(dataset)
    detections = Detections.from_records(records)
    limits = {"max_dets": max_dets, "max_dets_per_category": max_dets_per_category}
    assert_same(truth, detections, "bbox", **limits)
    if records and truth.has_masks:
        assert_same(truth, detections, "segm", **limits)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_every_category_verified(case):
    dataset, records = case
    for image in dataset["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    truth = GroundTruth.from_dataset(dataset)
    assert truth.verified is None
    assert_same(truth, Detections.from_records(records), "bbox")


@pytest.mark.parametrize(
    "image_id, category_id",
    [(2**62 + 1, 2**61 + 1), (-(2**63), -5), (2**63 - 1, -(2**63))],  # not exact as float64
)
def test_large_and_negative_ids(image_id, category_id):
    dataset = copy.deepcopy(TRUTH)
    dataset["images"][0].update(id=image_id, neg_category_ids=[])
    dataset["categories"][0]["id"] = category_id
    annotation = {"id": 9, "image_id": image_id, "category_id": category_id}
    annotation["bbox"] = [1, 2, 30, 40]
    dataset["annotations"] = [{**annotation, "area": 1200}]
    detections = Detections.from_records([{**annotation, "score": 0.5}])
    assert assert_same(GroundTruth(dataset), detections, "bbox").metrics()["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    "known",
    [
        [],
        [5],
        [0, 3, 4, 9],
        [-(2**63), 2**63 - 1],
        [-7, -2, 0, 2**31, 2**40],
        [2**63 - 3, 2**63 - 1],
        list(range(10**12, 10**12 + 50, 7)),
    ],
)
def test_find(known):
    near = [min(max(i + d, -(2**63)), 2**63 - 1) for i in known for d in (-1, 0, 1)]
    ids = [*near, *known[::-1], 0, -1, 2**63 - 1, -(2**63)]
    indices = {value: i for i, value in enumerate(known)}
    found = find(np.array(ids, np.int64), np.array(known, np.int64))
    assert found.tolist() == [indices.get(i, -1) for i in ids]
    assert find(np.empty(0, np.int64), np.array(known, np.int64)).tolist() == []


@pytest.mark.parametrize("largest", [2 * 10**8, 2**62])
def test_memory_of_large_ids(largest):
    known = np.array([1, 2, largest])
    tracemalloc.start()
    assert find(np.array([largest, 7, 1]), known).tolist() == [2, -1, 0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e5


def test_verified_pairs_with_and_without_table(real, monkeypatch):
    detections = random_detections(real, 1000)
    rows = select(real, detections, 300, None).rows
    monkeypatch.setattr(selection, "_SMALL_TABLE", -1)
    one = detections.select(slice(1))  # a table of all pairs is larger than this
    assert select(real, one, 300, None).rows.tolist() == [0][: int(0 in rows)]
    assert np.array_equal(select(real, detections, 300, None).rows, rows)


def test_boundary_ap(real):
    truth = real.restricted_to(real.image_ids[:10])
    detections = random_detections(truth, 100)
    boundary = evaluate(truth, detections, "boundary").metrics()["AP"]
    assert 0 < boundary < evaluate(truth, detections, "segm").metrics()["AP"]
    with pytest.raises(UserError, match="'boundary' needs engine 'fast'"):
        evaluate(truth, detections, "boundary", engine="lvis")


TRUTH = {
    "images": [{"id": 1, "height": 100, "width": 100, "neg_category_ids": [3]}],
    "categories": [{"id": 3, "frequency": "r", "image_count": 1}],
    "annotations": [],
}
TRUTH["images"][0]["not_exhaustive_category_ids"] = []


def two_detections(image_id=1, category_id=3, score=0.5, bbox=(1, 2, 3, 4)):
    return Detections(
        np.array([1, image_id]),
        np.array([3, category_id]),
        np.array([0.5, score]),
        np.array([(1, 2, 3, 4), bbox], np.float64),
    )


@pytest.mark.parametrize(
    "detections, arguments, message",
    [
        (two_detections(image_id=7), {}, r"detection 1 \(from 0\) has unknown image_id 7"),
        (two_detections(category_id=8), {}, r"detection 1 \(from 0\) has unknown category_id 8"),
        (two_detections(score=float("nan")), {}, r"detection 1 \(from 0\) has score nan"),
        (two_detections(bbox=[float("inf"), 0, 1, 1]), {}, r"has box \[inf, 0.0, 1.0, 1.0\]"),
        (
            Detections.from_records(
                [
                    {
                        "image_id": 1,
                        "category_id": 3,
                        "score": 0.5,
                        "segmentation": {"size": [100, 99], "counts": "\\e9"},
                    }
                ]
            ),
            {"iou_type": "segm"},
            r"size \[100, 99\] \(height, width\) in an image of size \[100, 100\]",
        ),
        (two_detections(), {"iou_type": "segm"}, "segm AP needs masks, but the detections"),
        (two_detections(), {"iou_type": "keypoints"}, "iou_type must be one of bbox, segm"),
        (two_detections(), {"engine": "slow"}, "engine must be one of fast, lvis; got 'slow'"),
    ],
)
def test_bad_input(detections, arguments, message):
    truth = GroundTruth(TRUTH)
    truth.segmentations = []
    with pytest.raises(UserError, match=message):
        evaluate(truth, detections, **arguments)


@pytest.mark.parametrize("first_id", [-1, 0, 1])
@pytest.mark.parametrize("engine", ["fast", "lvis"])
def test_annotation_id_0_counts(engine, first_id):
    """lvis-api and pycocotools take a match with this id for no match."""
    boxes = [(1, 2, 30, 40), (50, 50, 20, 20)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 3, "bbox": box, "area": box[2] * box[3]}
        for i, box in enumerate(boxes, start=first_id)
    ]
    truth = GroundTruth({**TRUTH, "annotations": annotations})
    ones = np.ones(2, np.int64)
    detections = Detections(ones, 3 * ones, np.array([0.9, 0.8]), np.array(boxes, np.float64))
    metrics = evaluate(truth, detections, "bbox", engine=engine).metrics()
    assert metrics["AP"] == metrics["APr"] == metrics["AR@300"] == pytest.approx(1)


@pytest.fixture
def missing(monkeypatch):
    """Return a function that makes packages unimportable."""

    def hide(*packages):
        for package, module in (("ultrafast_pycocotools", "fast_engine"), ("lvis", "lvis_engine")):
            if package in packages:
                monkeypatch.setitem(sys.modules, package, None)
                monkeypatch.delitem(sys.modules, f"apa_det.evaluation.{module}", raising=False)
                monkeypatch.delattr(apa_det.evaluation, module, raising=False)

    _log_fallback.cache_clear()
    yield hide
    _log_fallback.cache_clear()


def test_fallback_without_the_fast_engine(missing, caplog):
    missing("ultrafast_pycocotools")
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert evaluate(GroundTruth(TRUTH), two_detections()).engine == "lvis"
    assert caplog.text.count("pip install ultrafast-pycocotools==0.1.14") == 1
    with pytest.raises(MissingPackageError, match="pip install ultrafast-pycocotools"):
        load_engine("fast", "boundary")


def test_fallback_for_another_version(missing, monkeypatch, caplog):
    import ultrafast_pycocotools

    monkeypatch.setattr(ultrafast_pycocotools, "__version__", "9.9")
    monkeypatch.delitem(sys.modules, "apa_det.evaluation.fast_engine")
    with caplog.at_level("INFO"):
        assert load_engine("fast").__name__.endswith("lvis_engine")
    assert "got 9.9" in caplog.text


def test_missing_lvis_api(missing):
    missing("ultrafast_pycocotools", "lvis")
    with pytest.raises(MissingPackageError, match="pip install --no-deps lvis==0.5.3"):
        load_engine("fast")


def test_input_is_not_changed(lvis_val_100):
    dataset = json.loads(lvis_val_100.read_text())
    kept = {image["id"] for image in dataset["images"][:10]}
    dataset["images"] = dataset["images"][:10]
    dataset["annotations"] = [a for a in dataset["annotations"] if a["image_id"] in kept]
    before = json.dumps(dataset)
    truth = GroundTruth.from_dataset(dataset)
    detections = random_detections(truth, 200)
    columns = [detections.boxes.copy(), detections.masks.counts.copy()]
    for engine in ("fast", "lvis"):
        for iou_type in ("bbox", "segm"):
            evaluate(truth, detections, iou_type, engine=engine)
    assert json.dumps(dataset) == before
    assert np.array_equal(detections.boxes, columns[0])
    assert np.array_equal(detections.masks.counts, columns[1])
