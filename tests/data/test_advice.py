"""Advice on a dataset: hand-worked statistics, samplers, and configs that train."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from apa_det.checkpoint.starting_weights import choose_starting_weights
from apa_det.config import yaml_kinds
from apa_det.data import complete_categories, read_lvis_json
from apa_det.data.advice import advise, dataset_statistics, recommendation, write_advice
from apa_det.data.advice.dataset_statistics import largest_overlaps, measure
from apa_det.data.advice.sampler_choices import sampler_choices
from apa_det.data.recipe import choose_settings
from apa_det.engine import read_config
from apa_det.utils.json_files import read_json, write_json
from apa_det_cli import main

from .test_recipe import TINY

START = choose_starting_weights("coco", [], masks=False)


def dataset(boxes_of_images, num_classes, size=(400, 100)):
    """Each image is a list of pairs of class and box."""
    images = [
        {"id": 5 + i, "width": size[0], "height": size[1]} for i in range(len(boxes_of_images))
    ]
    annotations = [
        {"image_id": 5 + i, "category_id": 2 * label, "bbox": list(box)}
        for i, boxes in enumerate(boxes_of_images)
        for label, box in boxes
    ]
    categories = [{"id": 2 * i, "name": f"class {i}"} for i in range(num_classes)]
    made = {"images": images, "annotations": annotations, "categories": categories[::-1]}
    complete_categories(made)
    return made


def of_counts(counts, num_images):
    """The first ``count`` images have the class, with one box for each of its images."""
    images = [
        [(label, (0, 0, 40, 10)) for label, count in enumerate(counts) if i < count]
        for i in range(num_images)
    ]
    return dataset(images, len(counts))


def test_statistics():
    """Two overlapping boxes, a pair of other classes, an image without annotations."""
    made = dataset(
        [
            [(0, (0, 0, 20, 20)), (0, (0, 10, 20, 20)), (1, (0, 0, 20, 20))],
            [],
            [(0, (390, 90, 40, 40))],  # reaches out of the image: 10 x 10 are inside
        ],
        3,
    )
    statistics = measure(made)
    assert statistics.names == ["class 0", "class 1", "class 2"] and statistics.num_images == 3
    assert statistics.image_counts.tolist() == [2, 1, 0]
    assert statistics.counts.instance_count.tolist() == [3, 1, 0]
    assert [statistics.num_below(n) for n in (1, 2, 3)] == [1, 2, 3] and statistics.imbalance == 2
    assert statistics.objects_per_image.tolist() == [3, 1]
    assert statistics.overlaps == pytest.approx([1, 1 / 3, 1, 0])
    assert statistics.same_class_overlaps == pytest.approx([1 / 3, 1 / 3, 0, 0])
    assert statistics.relative_sizes == pytest.approx([0.1, 0.1, 0.1, 0.05])
    # 400 x 100 becomes 1333 x 333
    assert statistics.train_sides == pytest.approx(np.array([20, 20, 20, 10]) * 1333 / 400)


def test_overlaps_equal_torchvision(monkeypatch):
    """In small blocks too."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(6), [1, 3, 0, 40, 7, 2])
    corner = rng.uniform(0, 50, (len(rows), 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 30, corner.shape)], axis=1)
    classes, order = rng.integers(0, 3, len(rows)), rng.permutation(len(rows))
    rows, boxes, classes = rows[order], boxes[order], classes[order]
    iou = box_iou(*[torch.from_numpy(boxes)] * 2).numpy()
    iou *= (rows[:, None] == rows) & ~np.eye(len(rows), dtype=bool)
    for pairs in (4_000_000, 100):
        monkeypatch.setattr(dataset_statistics, "_MAX_PAIRS", pairs)
        largest, same = largest_overlaps(boxes, rows, classes)
        np.testing.assert_allclose(largest, iou.max(1))
        np.testing.assert_allclose(same, (iou * (classes[:, None] == classes)).max(1))


def test_an_epoch_of_each_sampler():
    """100 images have class 0, and 4 of them class 1, with the repeat factor √(0.16 / 0.04) = 2."""
    statistics = measure(of_counts([150, 4], 150))
    statistics.groups[:] = ["f", "c"]
    choices = {c.name: c for c in sampler_choices(statistics, 0.16 * 100 / 150)}
    plain, repeated = choices["TrainingSampler"], choices["RepeatFactorTrainingSampler"]
    assert plain.image_counts.tolist() == [150, 4] and plain.num_images == 150
    assert repeated.image_counts == pytest.approx([154, 8]) and repeated.num_images == 154
    aware = choices["InstanceAwareRepeatFactorTrainingSampler"]  # √(t / √(f b)), b = 4 / 154
    factor = (0.16 / 1.5 / (4 / 150 * 4 / 154) ** 0.5) ** 0.5
    assert aware.image_counts[1] == pytest.approx(4 * factor)
    # 75 rounds through both classes: 75 draws of class 0, of which 4 / 150 have class 1, and 75
    assert choices["ClassAwareTrainingSampler"].image_counts == pytest.approx([150, 77])
    under = choices["UndersamplingTrainingSampler"]  # half of the 146 images with only class 0
    assert under.image_counts == pytest.approx([77, 4])


@pytest.mark.parametrize(
    ("counts", "num_images", "recipe"),
    [
        ([300, 200], 300, "plain training, without resampling, with softmax class scores"),
        ([300], 300, "plain training"),
        ([300, 5, 0], 300, "repeat-factor sampling, APA class scores"),
        ([400, 200] * 100 + [5] * 150, 400, "repeat-factor sampling, Gumbel class scores and Drop"),
        ([1], 1, "plain training"),
        ([0, 0], 3, "none, as the dataset has no annotations"),
        ([0], 0, "none"),
    ],
)
def test_recommended_recipe(counts, num_images, recipe, tmp_path):
    """It is that of the written config, and the page and picture work for any dataset."""
    made = of_counts(counts, num_images)
    advice = advise("train <&>.json", made, START)
    assert advice.recipe.startswith(recipe) and f"Recommended: {recipe}" in str(advice)
    if any(counts):
        settings = choose_settings(made, None, START)
        assert all(setting in settings for setting in advice.settings)
        assert (
            len(advice.choices) == 5
            and sum("(recommended)" in row[0] for row in advice.choice_rows()) == 1
        )
    page = write_advice(advice, tmp_path).read_text()
    assert "train &lt;&amp;&gt;.json" in page and 'src="data:image/png' in page
    assert "http" not in page.replace("http-equiv", "")
    assert min(Image.open(tmp_path / "dataset.png").size) > 900


def test_ideas_follow_the_data():
    """Small, overlapping and many boxes; masks; scarce classes."""
    small = [[(0, (0, 0, 4, 4))] * 2 for _ in range(200)]
    crowd = [[(0, (i % 40 * 10, i // 40 * 10, 9, 9)) for i in range(400)]]
    for images, keys in (
        (small, ["NMS_THRESH_TEST", "ANCHOR_GENERATOR.SIZES"]),
        (crowd, ["TEST.DETECTIONS_PER_IMAGE 400"]),
        ([[(0, (0, 0, 200, 50))]] * 200, []),
        ([[(0, (0, 0, 200, 50))]] * 200 + [[(1, (0, 0, 200, 50))]], ["REPLAY_SHARE", "calibrate"]),
    ):
        found = advise("x.json", dataset(images, 2), START).ideas
        assert len(found) == len(keys), found
        for idea, key in zip(found, keys, strict=True):
            assert key in idea.keys
            named = re.findall(r"\b[A-Z]+\.[A-Z_.]+", idea.keys)
            assert all(name in yaml_kinds() for name in named), idea.keys
    with_masks = dataset(images, 2)
    for annotation in with_masks["annotations"]:
        annotation["segmentation"] = [[0, 0, 1, 0, 1, 1]]
    assert "COPY_PASTE" in advise("x.json", with_masks, START).ideas[0].keys
    assert recommendation._number(float("nan")) == ""


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_command_and_config(tiny_dataset, tmp_path, monkeypatch, capsys, forget_datasets):
    monkeypatch.chdir(tmp_path)
    files = ("--val", tiny_dataset / "val.json", "--image-root", tiny_dataset)
    flags = ("--write-config", "my.yaml", "--weights", "none", "--num-gpus", 0)
    assert run("prepare-dataset", "advise", tiny_dataset / "train.json", *files, *flags) == 0
    out = capsys.readouterr().out
    assert "classes in fewer than 10 images" in out and "Wrote advice/advice.html" in out
    cfg = read_config("my.yaml")
    assert f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN}" in out
    opts = [*TINY, "OUTPUT_DIR", "run"]
    assert run("train", "--config-file", "my.yaml", *opts) == 0
    assert Path("run/model_final.pth").is_file()


def test_coco_format(tinycoco, tmp_path, capsys):
    """It is converted for the config; crowds do not count."""
    train, val = (tinycoco / f"annotations/instances_{s}2017.json" for s in ("train", "val"))
    output, config = tmp_path / "advice", tmp_path / "my.yaml"
    roots = ("--image-root", tinycoco / "images/train2017")
    flags = ("--val", train, "--output", output, "--write-config", config)
    assert run("prepare-dataset", "advise", val, *flags, *roots) == 0
    assert "135 (boxes and masks)" in capsys.readouterr().out
    assert read_config(str(config)).DATASETS.LVIS_FORMAT[0][1] == str(
        output / "instances_val2017_lvis.json"
    )
    lvis = read_lvis_json(output / "instances_train2017_lvis.json")
    counts = {c["name"]: c["image_count"] for c in lvis["categories"]}
    of_val = {
        c["name"]: c["image_count"]
        for c in read_json(output / "instances_val2017_lvis.json")["categories"]
    }
    assert counts == of_val  # those of the training set


def test_one_line_errors(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = copy.deepcopy(small) | {"annotations": []}
    write_json(empty, "empty.json")
    advice = ("prepare-dataset", "advise")
    assert run(*advice, "empty.json") == 0
    assert run(*advice, "empty.json", "--write-config", "x.yaml", "--image-root", ".") == 2
    assert run(*advice, "empty.json", "--write-config", "x.yaml") == 2
    assert run(*advice, "empty.json", "--val", "empty.json") == 2
    assert run(*advice, "empty.json", "--output", "empty.json") == 2
    assert run(*advice, "missing.json") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5, lines
    for line, text in zip(
        lines,
        ("nothing to learn", "needs --image-root", "give --write-config", "is a file", "not exist"),
        strict=True,
    ):
        assert text in line
