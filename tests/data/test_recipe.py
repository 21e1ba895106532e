"""Configs written for a dataset: their settings follow the data, and they train."""

import copy
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from detectron2.modeling import build_model
from hypothesis import given

from apa_det.checkpoint.starting_weights import choose_starting_weights
from apa_det.data import coco_to_lvis, ensure_metadata, read_coco_json, read_lvis_json, recipe
from apa_det.data.class_counts import get_scarce_classes
from apa_det.data.recipe import choose_settings
from apa_det.engine import Trainer, read_config, read_job
from apa_det.errors import UserError
from apa_det.utils.json_files import write_json
from apa_det_cli import main

ROOT = Path(__file__).parents[2]
RANDOM = choose_starting_weights("none", [], masks=True)
PRETRAINED = choose_starting_weights("coco", ["dog"], masks=True)
TINY = """MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 32
MODEL.RPN.POST_NMS_TOPK_TRAIN 30 MODEL.RPN.POST_NMS_TOPK_TEST 30 INPUT.MIN_SIZE_TRAIN (64,)
INPUT.MIN_SIZE_TEST 64 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS () TEST.EVAL_PERIOD 0
DATALOADER.NUM_WORKERS 0 TEST.DETECTIONS_PER_IMAGE 20 SEED 1""".split()


def dataset(counts, num_images):
    """The first ``count`` images have the class."""
    classes = [{"id": i, "name": f"class {i}"} for i in range(len(counts))]
    pairs = [(label, image) for label, count in enumerate(counts) for image in range(count)]
    annotations = [{"category_id": label, "image_id": image} for label, image in pairs]
    return {"images": [{}] * num_images, "annotations": annotations, "categories": classes}


def chosen(*args, **kwargs):
    return {setting.key: setting.value for setting in choose_settings(*args, **kwargs)}


def test_lvis(lvis_v1_categories):
    """The published recipe follows from the counts of LVIS."""
    train = {
        "images": [],
        "categories": [
            {k: c[k] for k in ("id", "name", "image_count", "instance_count", "frequency")}
            for c in lvis_v1_categories
        ],
        "annotations": [{"image_id": i, "category_id": 1} for i in range(99_388)],
    }
    val = {**train, "images": [{}] * 19_809}
    settings = chosen(train, val, PRETRAINED, num_gpus=8)
    assert settings["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert settings["DATALOADER.REPEAT_THRESHOLD"] == pytest.approx(0.001, rel=0.02)
    assert settings["MODEL.ROI_BOX_HEAD.CLASS_SCORE"] == "gumbel"
    threshold = settings["MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD"]
    for category in train["categories"]:
        scarce = category["image_count"] / 99_388 < threshold
        assert scarce == (category["frequency"] != "f")
    # 24 epochs without repetition, see configs/LVISv1-InstanceSegmentation/Base-LVISv1-2x.yaml
    assert settings["SOLVER.MAX_ITER"] == pytest.approx(24 * 6212, rel=0.01)
    assert settings["SOLVER.STEPS"] == pytest.approx([16 * 6212, 22 * 6212], rel=0.01)
    assert (settings["SOLVER.IMS_PER_BATCH"], settings["SOLVER.BASE_LR"]) == (16, 0.02)
    assert settings["TEST.SUBSET"] == 1000
    assert settings["MODEL.ROI_HEADS.NUM_CLASSES"] == 1203 and not settings["MODEL.MASK_ON"]


def test_long_tail_by_hand():
    """400 images: classes in fewer than 40 are repeated, as in fewer than 100 of all sizes."""
    train = dataset([400, 150, 80, 3, 0], 500)
    settings = chosen(train, None, PRETRAINED)
    assert settings["DATALOADER.REPEAT_THRESHOLD"] == 0.1  # at most
    assert settings["MODEL.ROI_BOX_HEAD.CLASS_SCORE"] == "apa"
    assert "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS" not in settings
    assert not any(key.startswith("TEST.") for key in settings)
    # 24 epochs for 100,000 images: 24 (100,000 / 400)^(1/4) = 95.4 here, 4 images at a time
    assert settings["SOLVER.MAX_ITER"] == 9544
    assert settings["SOLVER.STEPS"] == [6362, 8748]
    assert chosen(train, None, RANDOM)["SOLVER.MAX_ITER"] == 28_630
    settings = chosen(
        dataset([4000, 30], 4000),
        train | {"categories": [{"id": 7, "name": "class 0"}, {"id": 9, "name": "class 1"}]},
        PRETRAINED,
    )
    assert settings["DATALOADER.REPEAT_THRESHOLD"] == 0.025
    assert settings["TEST.EVAL_PERIOD"] == math.ceil(settings["SOLVER.MAX_ITER"] / 10)
    assert "TEST.SUBSET" not in settings


def test_balanced():
    settings = chosen(dataset([500, 300], 500), None, PRETRAINED)
    assert settings["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"
    assert settings["MODEL.ROI_BOX_HEAD.CLASS_SCORE"] == "softmax"
    # one class has no tail, however few its images
    assert chosen(dataset([50], 50), None, PRETRAINED)["DATALOADER.SAMPLER_TRAIN"] == (
        "TrainingSampler"
    )
    # the rare classes are all absent: nothing can be repeated
    assert chosen(dataset([500, 0], 500), None, PRETRAINED)["DATALOADER.SAMPLER_TRAIN"] == (
        "TrainingSampler"
    )


def test_drop_loss_needs_frequent_classes():
    """With 300 classes: those of the model, and most of them with many images."""
    scarce = [5000] + [150] * 99 + [20] * 200
    key = "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS"
    for counts, expected in ((scarce, True), ([5000] + [20] * 299, False)):
        settings = chosen(dataset(counts, 5000), None, PRETRAINED)
        assert settings["MODEL.ROI_BOX_HEAD.CLASS_SCORE"] == "gumbel"
        assert settings[key] == expected
        assert ("MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD" in settings) == expected
    assert key not in chosen(dataset(scarce[1:], 5000), None, PRETRAINED)


def test_cpu():
    """Little enough to finish, whatever the size of the dataset, and for both starts."""
    for num_images in (1, 50, 100_000):
        train = dataset([num_images, 1], num_images)
        val = {**train, "images": [{}] * 300}
        for start in (choose_starting_weights("none", [], masks=True, cpu=True), PRETRAINED):
            settings = chosen(train, val, start, num_gpus=0)
            assert settings["MODEL.DEVICE"] == "cpu" and settings["SOLVER.MAX_ITER"] == 500
            assert settings["SOLVER.BASE_LR"] / settings["SOLVER.IMS_PER_BATCH"] == 0.02 / 16
            assert settings["TEST.EVAL_PERIOD"] == 250 and settings["TEST.SUBSET"] == 100
            assert settings["INPUT.MIN_SIZE_TEST"] in settings["INPUT.MIN_SIZE_TRAIN"]


@given(num_gpus=st.integers(1, 64), processes=st.integers(1, 64))
def test_linear_rule(num_gpus, processes):
    """Batch and learning rate keep their ratio, also if detectron2 scales them."""
    settings = chosen(dataset([300, 5], 300), None, PRETRAINED, num_gpus=num_gpus)
    cfg = read_config("", [str(x) for key, value in settings.items() for x in (key, value)])
    assert cfg.SOLVER.IMS_PER_BATCH % num_gpus == 0
    for scaled in (cfg, Trainer.auto_scale_workers(cfg, processes)):
        assert scaled.SOLVER.BASE_LR / scaled.SOLVER.IMS_PER_BATCH == pytest.approx(0.02 / 16)


@given(
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=20),
    start=st.sampled_from([RANDOM, PRETRAINED]),
    num_gpus=st.integers(0, 16),
)
def test_any_dataset(counts, start, num_gpus):
    train = dataset(counts, 300)
    if not any(counts):
        with pytest.raises(UserError, match="The training set has no annotations"):
            choose_settings(train, None, start)
        return
    settings = chosen(train, train, start, num_gpus=num_gpus)
    first, second = settings["SOLVER.STEPS"]
    assert 0 < settings["SOLVER.WARMUP_ITERS"] < first < second < settings["SOLVER.MAX_ITER"]
    assert 0 < settings.get("DATALOADER.REPEAT_THRESHOLD", 0.1) <= 0.1
    read_config("", [str(x) for key, value in settings.items() for x in (key, value)])


def test_other_classes(small):
    """Classes go by name, and may be absent in the validation set."""
    other = copy.deepcopy(small)
    for category in other["categories"]:
        category["id"] += 100
    del other["categories"][1]
    choose_settings(small, other, RANDOM)
    other["categories"][0]["name"] = "wolf"
    with pytest.raises(UserError, match="has the classes 'wolf', which the training set lacks"):
        choose_settings(small, other, RANDOM)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_three_commands(tinycoco, tmp_path, monkeypatch, capsys):
    """Convert and write the config, train, evaluate: from another folder each."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "coco"
    files = {s: tinycoco / f"annotations/instances_{s}2017.json" for s in ("train", "val")}
    assert (
        run(
            *("prepare-dataset", "coco-to-lvis", files["train"], "--val", files["val"]),
            *("--output", "coco/train.json", "--write-config", "my tiny.yaml", "--weights", "none"),
            *("--image-root", tinycoco / "images/train2017"),
            *("--val-image-root", tinycoco / "images/val2017"),
        )
        == 0
    )
    out = capsys.readouterr().out
    commands = [
        "apa-det train --config-file 'my tiny.yaml'",
        "apa-det eval --config-file 'my tiny.yaml' MODEL.WEIGHTS 'output/my tiny/model_final.pth'",
    ]
    assert out.splitlines()[-2:] == commands
    train = read_lvis_json(folder / "train.json")
    assert read_lvis_json(folder / "instances_val2017.json")["categories"] == train["categories"]
    text = Path("my tiny.yaml").read_text()
    assert [line.removeprefix("#   ") for line in text.splitlines()[1:3]] == commands
    lines = [
        line for line in text.splitlines()[3:] if not line.endswith(":") and "    - " not in line
    ]
    assert all("  # " in line for line in lines) and len(text.splitlines()) < 60
    assert "TEST.COUNT_FROM" not in text and "SUBSET" not in text
    output = ["OUTPUT_DIR", str(tmp_path / "run")]
    config = str(tmp_path / "my tiny.yaml")
    monkeypatch.chdir(folder)
    assert run("train", "--config-file", config, *TINY, *output) == 0
    weights = ["MODEL.WEIGHTS", tmp_path / "run/model_final.pth"]
    assert run("eval", "--config-file", config, *TINY, *output, *weights) == 0
    out = capsys.readouterr().out
    assert "bbox" in out and "segm" in out
    cfg = read_config(config)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80 and cfg.OUTPUT_DIR == "output/my tiny"
    assert cfg.DATASETS.LVIS_FORMAT[0][1:] == [
        str(folder / "train.json"),
        str(tinycoco / "images/train2017"),
    ]


def test_write_config_for_lvis_files(tiny_dataset, tmp_path, capsys):
    """The counts of a validation set with others than the training set's are replaced."""
    output = tmp_path / "x.yaml"
    flags = ["--image-root", tiny_dataset, "--output", output, "--num-gpus", 4]
    sets = ["--train", tiny_dataset / "train.json", "--val", tiny_dataset / "val.json"]
    assert run("prepare-dataset", "write-config", *sets, *flags) == 0
    cfg = read_config(str(output))
    assert cfg.TEST.COUNT_FROM == ""  # the generator gives both the same counts
    assert cfg.DATASETS.TEST == ("x_val",) and cfg.MODEL.MASK_ON
    assert cfg.SOLVER.IMS_PER_BATCH == 16 and cfg.SOLVER.REFERENCE_WORLD_SIZE == 4

    val = read_lvis_json(tiny_dataset / "val.json")
    for category in val["categories"]:
        for key in ("image_count", "instance_count", "frequency"):
            del category[key]
    write_json(val, tmp_path / "val.json")
    sets[-1] = tmp_path / "val.json"
    assert run("prepare-dataset", "write-config", *sets, *flags) == 0
    assert read_config(str(output)).TEST.COUNT_FROM == "x_train"
    assert run("prepare-dataset", "write-config", *sets[:2], *flags) == 0
    assert not read_config(str(output)).DATASETS.TEST


def test_names_and_shared_images(tiny_dataset, tmp_path, caplog, capsys):
    """Names of detectron2's own datasets are avoided; images of both sets are a leak."""
    output = tmp_path / "coco_2017.yaml"
    train = tiny_dataset / "train.json"
    flags = ["--train", train, "--val", train, "--image-root", tiny_dataset, "--output", output]
    assert run("prepare-dataset", "write-config", *flags, "--num-gpus", 2) == 0
    cfg = read_config(str(output))
    assert cfg.DATASETS.TRAIN == ("my_coco_2017_train",) and cfg.OUTPUT_DIR == "output/coco_2017"
    num_images = len(read_lvis_json(train)["images"])
    assert f"{num_images} of the {num_images} validation images are also training" in caplog.text
    train_command = f"apa-det train --config-file {output} --num-gpus 2"
    assert f"for 2 GPUs. Next:\n{train_command}\napa-det eval" in capsys.readouterr().out


def test_drop_loss_threshold_is_that_of_the_groups(tiny_dataset, tmp_path, monkeypatch):
    """As apa_det counts the classes of a registered dataset."""
    monkeypatch.setattr(recipe, "_MOST_SCARCE", 1)
    start = choose_starting_weights("none", [], masks=True)._replace(score="gumbel")
    train = read_lvis_json(tiny_dataset / "train.json")
    settings = chosen(train, None, start)
    output = tmp_path / "drop.yaml"
    flags = [
        "--train",
        tiny_dataset / "train.json",
        "--image-root",
        tiny_dataset,
        "--output",
        output,
    ]
    assert run("prepare-dataset", "write-config", *flags) == 0
    read_job(output)
    ensure_metadata("drop_train")
    scarce = get_scarce_classes(["drop_train"], settings["MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD"])
    groups = [c["frequency"] for c in sorted(train["categories"], key=lambda c: c["id"])]
    assert scarce.tolist() == [group != "f" for group in groups]


def test_invalid_flags(tinycoco, tmp_path, capsys):
    coco = tinycoco / "annotations/instances_val2017.json"
    convert = ["prepare-dataset", "coco-to-lvis", coco, "--output", tmp_path / "x.json"]
    root = ["--image-root", tmp_path]
    assert run(*convert, "--write-config", tmp_path / "x.yaml") == 2
    assert run(*convert, "--write-config", tmp_path / "x.txt", *root) == 2
    copied = tmp_path / "x.json"
    copied.write_bytes(coco.read_bytes())
    assert run(*convert[:-1], tmp_path / "y.json", "--val", copied) == 2
    weights = ["--weights", tmp_path / "none.pth"]
    assert run(*convert, "--write-config", tmp_path / "x.yaml", *root, *weights) == 2
    with pytest.raises(SystemExit):
        run(*convert, "--num-gpus", -1)
    errors = capsys.readouterr().err.splitlines()
    assert "--write-config needs --image-root, the folder of the images" in errors[0]
    assert "--write-config must name a .yaml file" in errors[1]
    assert "--val would be written to" in errors[2]
    assert "Checkpoint not found: " in errors[3] and "none.pth" in errors[3]
    assert not (tmp_path / "x.yaml").exists()


def test_random_weights_need_no_statistics(tiny_dataset, tmp_path):
    output = tmp_path / "r.yaml"
    flags = [
        "--train",
        tiny_dataset / "train.json",
        "--image-root",
        tiny_dataset,
        "--output",
        output,
    ]
    flags += ["--weights", "none", "--num-gpus", 1]
    assert run("prepare-dataset", "write-config", *flags) == 0
    assert yaml.safe_load(output.read_text())["MODEL"]["WEIGHTS"] == ""
    cfg = read_config(str(output), TINY)
    model = build_model(cfg)
    assert "FrozenBatchNorm" not in str(model) and "AGLU" in str(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_boxes_without_masks(tinycoco):
    coco = read_coco_json(tinycoco / "annotations/instances_val2017.json")
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
    assert chosen(coco_to_lvis(coco), None, RANDOM)["MODEL.MASK_ON"] is False
