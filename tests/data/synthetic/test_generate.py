"""The generated dataset: valid, deterministic, long-tailed, federated, with occluded objects."""

import filecmp
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from apa_det.data import check_dataset, generate_dataset
from apa_det.data.synthetic.shapes import (
    MAX_CLASSES,
    SHAPES,
    Appearance,
    choose_appearances,
    render_object,
)
from apa_det.errors import UserError
from apa_det.evaluation import Detections, GroundTruth, evaluate
from apa_det.utils.json_files import read_json

TINY = {"num_train": 6, "num_val": 3, "num_classes": 5, "image_size": 96}


@pytest.fixture(scope="module")
def splits(synthetic):
    return {split: read_json(synthetic / f"{split}.json") for split in ("train", "val")}


@pytest.mark.parametrize("split", ["train", "val"])
def test_has_no_problems(split, synthetic, splits):
    report = check_dataset(synthetic / f"{split}.json", synthetic)
    assert report.problems == []
    assert report.num_images == {"train": 240, "val": 40}[split]
    assert report.num_empty_images == 0


def test_perfect_detections_have_ap_1(synthetic, splits):
    truth = COCO(str(synthetic / "val.json"))
    detections = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 1.0}
        | {"bbox": a["bbox"], "segmentation": truth.annToRLE(a)}
        for a in splits["val"]["annotations"]
    ]
    truth, detections = GroundTruth.from_dataset(splits["val"]), Detections.from_records(detections)
    for iou_type in ("bbox", "segm"):
        results = evaluate(truth, detections, iou_type, engine="lvis").metrics()
        assert results["AP"] == results["APr"] == results["APc"] == results["APf"] == 1


def test_is_deterministic(tmp_path):
    for folder in ("a", "b"):
        generate_dataset(tmp_path / folder, **TINY)
    compared = filecmp.dircmp(tmp_path / "a", tmp_path / "b")
    assert sorted(compared.common) == ["train", "train.json", "val", "val.json"]
    names = ["train.json", "val.json", "train/000000000006.jpg", "val/000000000001.jpg"]
    same, _, _ = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)
    assert same == names
    generate_dataset(tmp_path / "a", **TINY, seed=1)
    same, _, _ = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)
    assert same == []


def test_masks_cover_the_visible_pixels(synthetic, splits):
    truth = COCO(str(synthetic / "train.json"))
    occluded = 0
    for image in splits["train"]["images"]:
        annotations = truth.loadAnns(truth.getAnnIds(image["id"]))
        masks = np.array([truth.annToMask(a) for a in annotations])
        assert masks.sum(0).max() <= 1  # no pixel belongs to two objects
        for annotation, mask in zip(annotations, masks, strict=True):
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert annotation["area"] == mask.sum() >= 20
            occluded += len(annotation["segmentation"]) > 1
    assert occluded > 10


def test_polygons_and_rle_are_equal(tmp_path):
    by_format = {}
    for mask_format in ("polygon", "rle"):
        files = generate_dataset(tmp_path / mask_format, **TINY, mask_format=mask_format)
        coco = COCO(files["train"])
        by_format[mask_format] = [coco.annToMask(a) for a in coco.dataset["annotations"]]
    for polygon, rle in zip(*by_format.values(), strict=True):
        np.testing.assert_array_equal(polygon, rle)
    segmentation = read_json(tmp_path / "rle/val.json")["annotations"][0]["segmentation"]
    assert isinstance(segmentation["counts"], str)
    assert mask_utils.decode(segmentation).shape == (96, 96)


def test_tail(splits):
    categories = splits["train"]["categories"]
    images, instances = defaultdict(set), Counter()
    for annotation in splits["train"]["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
        instances[annotation["category_id"]] += 1
    for category in categories:
        count = category["image_count"]
        assert count == len(images[category["id"]]) > 0
        assert category["instance_count"] == instances[category["id"]]
        assert category["frequency"] == ("r" if count <= 10 else "c" if count <= 100 else "f")
    groups = Counter(category["frequency"] for category in categories)
    assert groups["f"] >= 1 and groups["c"] >= 3 and groups["r"] >= 2
    ranked = sorted((category["image_count"] for category in categories), reverse=True)
    assert ranked[0] == 120 and ranked[len(ranked) // 2] < 40


def test_default_has_all_frequency_groups():
    from apa_det.data.synthetic.generate import _tail

    counts = _tail(600, 16)
    assert sum(n > 100 for n in counts) >= 4
    assert sum(n <= 10 for n in counts) >= 3
    assert sum(10 < n <= 100 for n in counts) >= 5


def test_val_has_all_classes_and_the_frequencies_of_train(splits):
    assert splits["val"]["categories"] == splits["train"]["categories"]
    images = defaultdict(set)
    for annotation in splits["val"]["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    counts = [len(images[category["id"]]) for category in splits["val"]["categories"]]
    assert min(counts) >= 3 and max(counts) <= 2 * min(counts)


def test_rare_classes_look_like_frequent_ones(splits):
    def parts(category):
        return set(category["name"].split("_"))

    ranked = sorted(splits["train"]["categories"], key=lambda c: -c["image_count"])
    frequent = [parts(category) for category in ranked if category["image_count"] >= 50]
    for category in ranked[-4:]:
        assert category["frequency"] == "r"
        assert any(len(parts(category) & other) == 2 for other in frequent), category["name"]


def test_federated_annotations(splits):
    not_exhaustive = 0
    for dataset in splits.values():
        present = defaultdict(set)
        for annotation in dataset["annotations"]:
            present[annotation["image_id"]].add(annotation["category_id"])
        for image in dataset["images"]:
            assert len(image["neg_category_ids"]) >= 2
            assert not present[image["id"]] & set(image["neg_category_ids"])
            assert present[image["id"]] >= set(image["not_exhaustive_category_ids"])
            not_exhaustive += len(image["not_exhaustive_category_ids"])
    assert not_exhaustive > 10


def test_object_sizes_and_counts(splits):
    annotations = splits["train"]["annotations"]
    sides = [max(a["bbox"][2:]) for a in annotations]
    assert min(sides) < 14 and max(sides) > 0.5 * 96
    per_image = Counter(a["image_id"] for a in annotations)
    assert max(per_image.values()) == 6 and len(set(per_image.values())) >= 5


@settings(max_examples=8, deadline=None)
@given(
    num_train=st.integers(1, 6),
    num_val=st.integers(1, 3),
    classes=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    image_size=st.integers(64, 100),
)
def test_every_class_occurs(num_train, num_val, classes, seed, image_size, tmp_path_factory):
    num_classes = max(1, round(classes * 5 * num_train))
    folder = tmp_path_factory.mktemp("any")
    files = generate_dataset(
        folder,
        num_train=num_train,
        num_val=num_val,
        num_classes=num_classes,
        seed=seed,
        image_size=image_size,
    )
    categories = read_json(files["train"])["categories"]
    assert len(categories) == num_classes
    assert min(category["image_count"] for category in categories) >= 1
    assert check_dataset(files["val"], folder).problems == []


def test_classes_depend_only_on_their_number_and_the_seed(tmp_path):
    names = []
    for num_train in (5, 9):
        files = generate_dataset(tmp_path, **TINY | {"num_train": num_train})
        names.append([category["name"] for category in read_json(files["val"])["categories"]])
    assert names[0] == names[1]


@pytest.mark.parametrize("num_classes", [1, 2, 16, 1203, MAX_CLASSES])
def test_classes_differ(num_classes):
    appearances = choose_appearances(num_classes, max(1, int(0.3 * num_classes)), seed=0)
    assert len({a.name for a in appearances}) == num_classes


def test_first_classes_differ_in_shape():
    appearances = choose_appearances(16, 4, seed=0)
    assert len({a.shape for a in appearances[:10]}) == 10


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_box(shape):
    appearance = Appearance("red", "plain", shape)
    for size in (11, 60):
        _, coverage = render_object(appearance, size, np.random.default_rng(0))
        assert 0.5 * size < max(coverage.shape) < 1.5 * size
        assert (coverage >= 0.5).sum() > 0.15 * size**2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_train": 0}, "must be >= 1, got 0, 3 and 5"),
        ({"num_classes": 31}, r"num_classes must be <= 5 \* num_train"),
        ({"num_classes": 2000, "num_train": 9000}, "num_classes must be <= 1536, got 2000"),
        ({"image_size": 63}, "image_size must be >= 64, got 63"),
        ({"mask_format": "bitmask"}, "mask_format must be one of polygon, rle; got 'bitmask'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_arguments_out_of_range(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        generate_dataset(tmp_path / "x", **TINY | arguments)
    assert not (tmp_path / "x").exists()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write .*file/x: Not a directory"):
        generate_dataset(tmp_path / "file" / "x", **TINY)
