"""Splits: complete, disjoint, deterministic, and with every class in each part."""

import copy
import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from apa_det.data import coco_to_lvis, read_coco_json, read_lvis_json
from apa_det.data.split import split_dataset, stratify
from apa_det.errors import UserError
from apa_det_cli import main

SHARES = st.sampled_from([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1], [1 / 3] * 3, [0.2] * 5])


def numbers_of(labels, parts, num_parts):
    """Count the images of each class in each part."""
    return {
        label: [
            sum(label in labels[i] for i in np.flatnonzero(parts == p)) for p in range(num_parts)
        ]
        for label in set().union(*labels)
    }


@given(counts=st.lists(st.integers(1, 12), max_size=8), shares=SHARES, seed=st.integers(0, 9))
def test_one_class_per_image(counts, shares, seed):
    """Every class has its share in each part, rounded, and one image at least where it can."""
    labels = [[label] for label, count in enumerate(counts) for _ in range(count)]
    parts = stratify(labels, shares, seed)
    for label, numbers in numbers_of(labels, parts, len(shares)).items() if labels else ():
        for number, share in zip(numbers, shares, strict=True):
            assert abs(number - share * counts[label]) <= 1
            assert number or counts[label] < len(shares)
        if counts[label] < len(shares) and shares[0] > shares[1]:
            assert numbers[0] == counts[label]  # what is not in training cannot be learned


@given(
    labels=st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=10, max_size=60),
    shares=SHARES,
)
def test_many_classes_per_image(labels, shares):
    parts = stratify(labels, shares)
    assert parts.shape == (len(labels),) and set(parts) <= set(range(len(shares)))
    assert (parts == stratify(labels, shares)).all()
    sizes = np.bincount(parts, minlength=len(shares))
    assert sizes.sum() == len(labels)
    # the most frequent class is spread as its images allow
    for label, numbers in numbers_of(labels, parts, len(shares)).items():
        if sum(numbers) >= 5 * len(shares) + 7:
            assert min(numbers) > 0, label


def test_images_without_classes_fill_the_parts():
    assert np.bincount(stratify([[]] * 10, [0.8, 0.2])).tolist() == [8, 2]
    assert np.bincount(stratify([[]] * 9, [1 / 3] * 3)).tolist() == [3, 3, 3]


def test_exchange_by_hand():
    """Class 2 is in images 0 and 1, which 0 and 1 would keep together: an exchange parts them."""
    labels = [{0, 2}, {1, 2}, {0, 1}, {0}, {1}, {3}, {3}]
    for seed in range(20):
        numbers = numbers_of(labels, stratify(labels, [0.5, 0.5], seed), 2)
        assert all(min(n) >= 1 for n in numbers.values()), seed


@pytest.mark.parametrize("shares", [[0.8, 0.2], [0.5, 0.5], [1 / 3] * 3])
def test_better_than_chance_on_real_images(shares, lvis_val_100):
    dataset = read_lvis_json(lvis_val_100)
    labels = {image["id"]: set() for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        labels[annotation["image_id"]].add(annotation["category_id"])
    labels = list(labels.values())

    def num_missing(parts):
        numbers = numbers_of(labels, parts, len(shares)).values()
        return sum(min(n) == 0 for n in numbers if sum(n) >= len(shares))

    sizes = np.array(shares) * len(labels)
    assert (abs(np.bincount(stratify(labels, shares)) - sizes) < 5).all()
    generator = np.random.default_rng(0)
    chance = [num_missing(generator.choice(len(shares), len(labels), p=shares)) for _ in range(20)]
    assert num_missing(stratify(labels, shares)) < min(chance)


def test_datasets(small):
    before = copy.deepcopy(small)
    small["info"] = {"year": 1}
    train, val = split_dataset(small, [0.5, 0.5], count_from_first=True, rare_max=0)
    assert {k: v for k, v in small.items() if k != "info"} == before
    assert train["info"] == val["info"] == {"year": 1}
    (first,), (second,) = train["images"], val["images"]
    assert {first["id"], second["id"]} == {3, 7} and first in before["images"]
    annotations = train["annotations"] + val["annotations"]
    assert sorted(a["id"] for a in annotations) == [11, 12, 13]
    assert all(a["image_id"] == first["id"] for a in train["annotations"])
    counts = {c["id"]: c["image_count"] for c in train["categories"]}
    assert counts == {4: 1, 21: int(first["id"] == 7), 90: 0}
    assert val["categories"] == train["categories"]


def test_images_with_the_same_file_stay_together(small):
    """Their annotations, too: otherwise a part has seen the images of another."""
    images = [
        {**small["images"][0], "id": i, "file_name": f"{'./' * (i % 2)}{i // 2}.png"}
        for i in range(20)
    ]
    pairs = [(image, category) for image in range(20) for category in (4, 21)]
    small["annotations"] = [
        {**small["annotations"][0], "id": i, "image_id": image, "category_id": category}
        for i, (image, category) in enumerate(pairs)
    ]
    small["images"] = images
    first, second = split_dataset(small, [0.5, 0.5])
    ids = [{image["id"] // 2 for image in part["images"]} for part in (first, second)]
    assert not ids[0] & ids[1] and len(first["images"]) == len(second["images"]) == 10


def test_counts_are_counted_again(small):
    """Those of the whole dataset do not hold for its parts."""
    for category in small["categories"]:
        category |= {"image_count": 500, "instance_count": 500, "frequency": "f"}
    for part in split_dataset(small, [0.5, 0.5]):
        dog = next(c for c in part["categories"] if c["name"] == "dog")
        assert (dog["image_count"], dog["instance_count"], dog["frequency"]) == (1, 1, "r")


def test_too_few_images(small):
    with pytest.raises(UserError, match="has 2 images, too few for 3 parts .*: a part would have"):
        split_dataset(small, [1 / 3] * 3)


def test_command(tinycoco, tmp_path, capsys):
    path = tmp_path / "all.json"
    lvis = coco_to_lvis(read_coco_json(tinycoco / "annotations/instances_train2017.json"))
    path.write_text(json.dumps(lvis))

    def run(*flags):
        return main(["prepare-dataset", "split", str(path), "--output", str(tmp_path), *flags])

    for flags, names in (
        (["--val-share", "0.25"], ["train", "val"]),
        (["--parts", "3", "--seed", "7"], ["part_1", "part_2", "part_3"]),
    ):
        assert run(*flags) == 0
        parts = [read_lvis_json(tmp_path / f"{name}.json") for name in names]
        ids = [image["id"] for part in parts for image in part["images"]]
        assert sorted(ids) == sorted(image["id"] for image in lvis["images"])
        assert sum(len(part["annotations"]) for part in parts) == len(lvis["annotations"])
    assert "part_3.json: 1" in capsys.readouterr().out
    path = path.rename(tmp_path / "train.json")
    assert run("--val-share", "0.2") == run("--val-share", "1") == run("--parts", "1") == 2
    errors = capsys.readouterr().err.splitlines()
    assert "train.json would be overwritten" in errors[0]
    assert "--val-share must be between 0 and 1, got 1" in errors[1]
    assert "--parts must be >= 2, got 1" in errors[2]
