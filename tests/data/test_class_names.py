"""Class names of datasets, and frequency groups by the file, everywhere alike."""

import gzip
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import get_lvis_instances_meta, register_lvis_instances
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det.data import check_dataset, register_lvis_format
from apa_det.data.class_names import dataset_class_names, map_classes
from apa_det.data.name_matching import match_names
from apa_det.data.sampling import UndersamplingTrainingSampler, class_groups, count_classes
from apa_det.data.validation import read_categories
from apa_det.demo import class_info
from apa_det.errors import UserError
from apa_det.evaluation.evaluator import read_ground_truth
from apa_det.utils.json_files import read_json


@pytest.fixture
def remove():
    names = []
    yield names.append
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["C"]), max_size=5
) | st.sampled_from(['"categories": [', "]}", '\\"categories\\": [{', "categories"])
values = st.recursive(
    texts | st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(texts, min_size=1, max_size=5, unique=True),
    keys=st.permutations(["images", "categories", "annotations", "extra", "categories "]),
    extra=values,
    nested=st.booleans(),
    ascii_only=st.booleans(),
    packed=st.booleans(),
)
def test_categories_alone(tmp_path_factory, names, keys, extra, nested, ascii_only, packed):
    """The same as those of the whole file, wherever the key is."""
    categories = [{"id": -i, "name": name, "of": extra} for i, name in enumerate(names)]
    content = {"images": [], "annotations": [], "categories": categories, "extra": extra}
    content["categories "] = {"categories": [1]} if nested else "categories"
    text = json.dumps({key: content[key] for key in keys}, ensure_ascii=ascii_only, indent=1)
    path = tmp_path_factory.getbasetemp() / "categories.json"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read_categories(path) == sorted(categories, key=lambda c: c["id"])
    assert read_categories(path) == sorted(read_json(path)["categories"], key=lambda c: c["id"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not valid JSON|cut off"),
        ('{"categories": [', "cut off"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "name must be unique"),
        ('{"categories": [{"id": 1.5, "name": "a"}]}', "id must be an integer"),
        ('{"categories": []}', "is empty"),
        ('{"images": []}', '"categories" is missing'),
        ("[]", "must be an object"),
    ],
)
def test_invalid_categories(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_categories(path)


def test_categories_of_a_file_that_changes(tmp_path):
    path = tmp_path / "a.json"
    for name in ("dog", "zebra"):
        path.write_text(json.dumps({"categories": [{"id": 1, "name": name}]}))
        assert read_categories(path)[0]["name"] == name


@given(st.lists(st.sampled_from(["a b", "A_B", "a-b", "c", "C", "d"]), unique=True), st.data())
def test_each_class_matches_at_most_one(names, data):
    others = data.draw(st.lists(st.sampled_from(["a b", "A_b", "c", "D", "e"]), unique=True))
    matches = match_names(names, others)
    found = [match for match in matches if match is not None]
    assert len(found) == len(set(found))
    for name, match in zip(names, matches, strict=True):
        assert (name in others) <= (match is not None and others[match] == name)


def test_names_of_lvis(tmp_path, remove):
    """detectron2's metadata have the first synonym of a class, its file the name."""
    names = MetadataCatalog.get("lvis_v1_val").thing_classes
    categories = [
        {"id": i, "name": "bull" if name == "horned_cow" else name, "synonyms": [name]}
        for i, name in enumerate(names, start=1)
    ]
    lvis = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "lvis.json").write_text(json.dumps(lvis))
    register_lvis_format("names_lvis", tmp_path / "lvis.json", tmp_path)
    remove("names_lvis")
    own = dataset_class_names("names_lvis")
    assert "bull" in own and own != names
    assert map_classes("names_lvis", names).tolist() == list(range(1203))
    assert map_classes("names_lvis", own) is None
    with pytest.raises(UserError, match="has 2 classes of the same name as another: 'bull', "):
        map_classes("names_lvis", [*own, "bull", "zebra"])


def test_one_rule_for_the_groups(tmp_path, remove, tiny_dataset):
    """Those of the file, also in a subset of LVIS under detectron2's metadata."""
    meta = get_lvis_instances_meta("lvis_v1_train")
    rng = np.random.default_rng(0)
    frequencies = rng.choice([*"rcf"], 1203).tolist()
    categories = [
        {"id": i, "name": name, "synonyms": [name], "frequency": f}
        | {"image_count": 5, "instance_count": 5}
        for i, (name, f) in enumerate(zip(meta["thing_classes"], frequencies, strict=True), 1)
    ]
    image = {"id": 1, "height": 9, "width": 9, "coco_url": "a/b/c.jpg"}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": [0, 0, 5, 5], "area": 25}
        | {"segmentation": [[0, 0, 5, 0, 5, 5]]}
        for i in (1, 2, 3)
    ]
    path = tmp_path / "lvis_v1_train.json"
    path.write_text(
        json.dumps({"images": [image], "annotations": annotations, "categories": categories})
    )
    register_lvis_instances("groups_lvis", meta, str(path), str(tmp_path))
    register_lvis_format("groups_own", path, tmp_path)
    remove("groups_lvis"), remove("groups_own")
    for name in ("groups_lvis", "groups_own"):
        truth = read_ground_truth(name)
        assert [truth.groups.names[i] for i in truth.category_groups] == frequencies
        counts = count_classes([{"annotations": [{"category_id": 0}]}])
        assert class_groups(counts, [name]) == frequencies
        classes = class_info([name], 1203)
        assert [classes.groups.names[i] for i in classes.group_indices] == frequencies
    report = check_dataset(path, tmp_path)
    assert [report.groups[g].classes for g in "rcf"] == [frequencies.count(g) for g in "rcf"]
    assert list(report.groups) == [*"rcf"]
    assert class_groups(counts, ["groups_lvis", "groups_own"]) == frequencies
    frequent, rare = frequencies.index("f"), frequencies.index("r")
    dataset = [{"annotations": [{"category_id": c}]} for c in (frequent, rare)]
    sampler = UndersamplingTrainingSampler(
        dataset, frequent_share=0.25, dataset_names=["groups_lvis"], seed=0
    )
    factors = sampler._int_part + sampler._frac_part
    assert factors.tolist() == [0.25, 1]


def test_groups_by_count(tmp_path, remove):
    """Files without frequency: the thresholds of the dataset; several files: their sum."""
    categories = [{"id": 1, "name": "a", "image_count": 30}, {"id": 2, "name": "b"}]
    categories[1]["image_count"] = 4
    lvis = {"images": [], "annotations": [], "categories": categories}
    for name, thresholds in (("groups_a", (3, 20)), ("groups_b", (10, 100))):
        (tmp_path / f"{name}.json").write_text(json.dumps(lvis))
        low, high = thresholds
        path = tmp_path / f"{name}.json"
        register_lvis_format(name, path, tmp_path, rare_max=low, common_max=high)
        remove(name)
    counts = count_classes([{"annotations": [{"category_id": 0}]}] * 12, 2)
    assert class_groups(counts, ["groups_a"]) == ["f", "c"]
    assert class_groups(counts, ["groups_b"]) == ["c", "r"]
    assert class_groups(counts, ["groups_a", "groups_b"]) == ["c", "r"]
