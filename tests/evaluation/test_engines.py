"""The fast engine against lvis-api: the same arrays, not only the same metrics."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apa_det.evaluation
from apa_det.evaluation import Detections, GroundTruth, evaluate, load_engine
from apa_det.evaluation.engines import _log_fallback

fast_engine = pytest.importorskip("apa_det.evaluation.fast_engine")

REAL = Path(__file__).parents[2] / "../shared/data/lvis/lvis_val_100.json"
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
    """Objects found more or less well, each maybe several times; some in the wrong category."""
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
    scores = rng.choice([0.25, 0.5, 0.75], number)  # tied
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
def real():
    if not REAL.exists():
        pytest.skip("../shared/data/lvis/lvis_val_100.json is not here")
    return GroundTruth.from_file(REAL)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_real_annotations(real, iou_type, monkeypatch):
    monkeypatch.setattr(fast_engine, "_MASKS_AT_ONCE", 500)  # in several parts
    detections = random_detections(real, 4000)
    metrics = assert_same(real, detections, iou_type).metrics()
    assert 0 < metrics["APr"] < 1 and 0 < metrics["APc"] < 1 and 0 < metrics["AR@300"] < 1


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_more_than_the_limits(real, iou_type):
    truth = real.restricted_to(real.image_ids[:4])
    detections = random_detections(truth, 3000)
    assert np.bincount(np.searchsorted(truth.image_ids, detections.image_ids)).min() > 300
    full = assert_same(truth, detections, iou_type, max_dets=None)
    assert assert_same(truth, detections, iou_type).metrics()["AP"] != full.metrics()["AP"]
    assert_same(truth, detections, iou_type, max_dets=None, max_dets_per_category=15)


# Generated cases. Coordinates are whole, so that IoUs meet each other and the thresholds.

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
    if kind == "polygons":  # two that overlap
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
                "id": 100 - i,  # falling: the order of the file is not that of the ids
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
    found = st.one_of(boxes, st.sampled_from(near)) if near else boxes
    detections = [
        {
            "image_id": 100 - image,
            "category_id": ids[category % num_categories],
            "score": score,
            "bbox": box,
            "segmentation": segmentation(box, "compressed"),
        }
        for image, category, score, box in draw(
            st.lists(st.tuples(images, categories, scores, found), max_size=14)
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


def test_ids_of_any_size():
    dataset = copy.deepcopy(TRUTH)
    picture, number = 2**62 + 1, 2**61 + 1  # no floating point number
    dataset["images"][0].update(id=picture, neg_category_ids=[])
    dataset["categories"][0]["id"] = number
    annotation = {"id": 9, "image_id": picture, "category_id": number, "bbox": [1, 2, 30, 40]}
    dataset["annotations"] = [{**annotation, "area": 1200}]
    detections = Detections.from_records([{**annotation, "score": 0.5}])
    assert assert_same(GroundTruth(dataset), detections, "bbox").metrics()["AP"] == pytest.approx(1)


def test_boundary_ap(real):
    truth = real.restricted_to(real.image_ids[:10])
    detections = random_detections(truth, 100)
    boundary = evaluate(truth, detections, "boundary").metrics()["AP"]
    assert 0 < boundary < evaluate(truth, detections, "segm").metrics()["AP"]
    with pytest.raises(ValueError, match="needs the fast engine"):
        evaluate(truth, detections, "boundary", engine="lvis")


TRUTH = {
    "images": [{"id": 1, "height": 100, "width": 100, "neg_category_ids": [3]}],
    "categories": [{"id": 3, "frequency": "r", "image_count": 1}],
    "annotations": [],
}
TRUTH["images"][0]["not_exhaustive_category_ids"] = []


def found(**changes):
    record = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4]}
    return Detections.from_records([record, {**record, **changes}])


@pytest.mark.parametrize(
    "detections, arguments, message",
    [
        (found(image_id=7), {}, r"detection 1 \(from 0\) is of picture 7"),
        (found(category_id=8), {}, r"detection 1 \(from 0\) is of category 8"),
        (found(score=float("nan")), {}, r"detection 1 \(from 0\) has the score nan"),
        (found(bbox=[float("inf"), 0, 1, 1]), {}, r"has the box \[inf, 0.0, 1.0, 1.0\]"),
        (
            Detections.from_records(
                [
                    {
                        "image_id": 1,
                        "category_id": 3,
                        "score": 0.5,
                        "segmentation": {"size": [100, 99], "counts": "X"},
                    }
                ]
            ),
            {"iou_type": "segm"},
            r"size \[100, 99\] \(height, width\) in a picture of size \[100, 100\]",
        ),
        (found(), {"iou_type": "segm"}, "segm AP needs masks, but the detections"),
        (found(), {"iou_type": "keypoints"}, "IoU types are bbox, segm"),
        (found(), {"engine": "slow"}, "engines are fast and lvis, not slow"),
    ],
)
def test_bad_input(detections, arguments, message):
    truth = GroundTruth(TRUTH)
    truth.segmentations = []
    with pytest.raises(ValueError, match=message):
        evaluate(truth, detections, **arguments)


@pytest.fixture
def missing(monkeypatch):
    """Makes packages as if they were not installed."""

    def hide(*packages):
        for package, module in (("ultrafast_pycocotools", "fast_engine"), ("lvis", "lvis_engine")):
            if package in packages:
                monkeypatch.setitem(sys.modules, package, None)
                monkeypatch.delitem(sys.modules, f"apa_det.evaluation.{module}", raising=False)
                monkeypatch.delattr(apa_det.evaluation, module, raising=False)

    _log_fallback.cache_clear()
    yield hide
    _log_fallback.cache_clear()


def test_falls_back_where_the_fast_engine_is_missing(missing, caplog):
    missing("ultrafast_pycocotools")
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert evaluate(GroundTruth(TRUTH), found()).engine == "lvis"
    assert caplog.text.count("pip install ultrafast-pycocotools==0.1.14") == 1
    with pytest.raises(ImportError, match="pip install ultrafast-pycocotools"):
        load_engine("fast", "boundary")


def test_falls_back_for_another_release(missing, monkeypatch, caplog):
    import ultrafast_pycocotools

    monkeypatch.setattr(ultrafast_pycocotools, "__version__", "9.9")
    monkeypatch.delitem(sys.modules, "apa_det.evaluation.fast_engine")
    with caplog.at_level("INFO"):
        assert load_engine("fast").__name__.endswith("lvis_engine")
    assert "there is 9.9" in caplog.text


def test_says_how_to_install_lvis_api(missing):
    missing("ultrafast_pycocotools", "lvis")
    with pytest.raises(ImportError, match="pip install --no-deps lvis==0.5.3"):
        load_engine("fast")


def test_input_stays_as_it_is(real):
    dataset = json.loads(REAL.read_text())
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
