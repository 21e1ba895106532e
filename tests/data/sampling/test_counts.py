"""Class counts: hand-worked cases and a counted epoch."""

import itertools

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from apa_det.data.sampling import (
    RandomSubsetTrainingSampler,
    class_groups,
    count_classes,
    epoch_table,
)

DATASET = [
    {"annotations": [{"category_id": 0}, {"category_id": 0}, {"category_id": 2}]},
    {"annotations": [{"category_id": 2}, {"category_id": 1, "iscrowd": 1}]},
    {},
    {"annotations": [{"category_id": 4}, {"category_id": 0}]},
]


def rows(table):
    result = {}
    for line in table.splitlines():
        name, *cells = line.split()
        if name in ("rare", "common", "frequent", "all"):
            result[name] = [float(cell) for cell in cells]
    return result


def test_counts_by_hand():
    counts = count_classes(DATASET, num_classes=6)
    assert (counts.num_images, counts.num_classes) == (4, 6)
    assert counts.image_count.tolist() == [2, 0, 2, 0, 1, 0]
    assert counts.instance_count.tolist() == [3, 0, 2, 0, 1, 0]
    assert counts.images.tolist() == [0, 0, 1, 3, 3]
    assert counts.classes.tolist() == [0, 2, 2, 0, 4]
    assert count_classes([]).image_count.tolist() == []


def test_table_by_hand():
    groups = ["f", "f", "c", "r", "r"]
    table = epoch_table(count_classes(DATASET), groups, np.array([1, 2, 1, 0.5]))
    assert rows(table) == {
        # classes, images, instances: of the dataset, of an epoch
        "rare": [1, 1, 1, 0, 0, 0, 0.5],
        "common": [1, 2, 2, 1, 3, 3, 1.5],
        "frequent": [1, 2, 3, 1, 2, 2, 0.83],
        "all": [3, 4, 6, 2, 4, 6, 1],
    }


def test_table_matches_a_counted_epoch():
    """For a sampler whose epochs all contain the same images."""
    generator = np.random.default_rng(0)
    dataset = [
        {"annotations": [{"category_id": int(c)} for c in generator.geometric(0.2, n) - 1]}
        for n in generator.integers(0, 6, 200)
    ]
    counts = count_classes(dataset)
    groups = class_groups(counts)
    sampler = RandomSubsetTrainingSampler(dataset, subset_ratio=0.3, seed=0)
    table = rows(epoch_table(counts, groups, sampler.repeats.double().numpy()))
    epoch = [dataset[i] for i in itertools.islice(sampler, 60)]
    for name, group in (("rare", "r"), ("common", "c"), ("frequent", "f")):
        classes = [
            [a["category_id"] for a in record["annotations"] if groups[a["category_id"]] == group]
            for record in epoch
        ]
        assert table[name][3] == len({c for present in classes for c in present})
        assert table[name][4] == sum(map(bool, classes))
        assert table[name][5] == sum(map(len, classes))
    assert table["all"][4] == 60


def test_groups():
    counts = count_classes(DATASET * 30)
    assert class_groups(counts) == ["c", "r", "c", "r", "c"]
    metadata = MetadataCatalog.get("test_groups_from_metadata")
    metadata.set(class_frequency=["f"] * 5)
    assert class_groups(counts, ["test_groups_from_metadata"]) == ["f"] * 5
    assert class_groups(counts, ["test_groups_from_metadata", "another"])[0] == "c"
    MetadataCatalog.remove("test_groups_from_metadata")


@pytest.mark.parametrize("repeats", [0, 1, 3])
def test_table_without_instances(repeats):
    table = epoch_table(count_classes([{}, {}]), [], np.full(2, float(repeats)))
    assert rows(table)["all"] == [0, 2, 0, 0, 2 * repeats, 0]
