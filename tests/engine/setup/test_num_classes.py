"""The number of classes that a config leaves unset, in both formats."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import instantiate
from omegaconf import OmegaConf

from apa_det.engine import read_config, read_job, setup_job
from apa_det.errors import UserError

from ...conftest import TINY_CONFIG, tiny_datasets, training_flags

ROOT = Path(__file__).parents[3]
KEY = "MODEL.ROI_HEADS.NUM_CLASSES"


@pytest.fixture
def config(tiny_dataset, tmp_path):
    """Make the tiny config without the number of classes, on top of the text of a base config."""

    def make(base=None, weights=""):
        text = re.sub(" *NUM_CLASSES: 4\n", "", TINY_CONFIG)
        text = text.format(datasets=tiny_datasets(tiny_dataset))
        text = text.replace('WEIGHTS: ""', f'WEIGHTS: "{weights}"')
        if base is not None:
            (tmp_path / "base.yaml").write_text(f"{base}\nVERSION: 2\n")
            text = f"_BASE_: base.yaml\n{text}"
        path = tmp_path / "config.yaml"
        path.write_text(f"{text}\nOUTPUT_DIR: {tmp_path / 'output'}\n")
        return path

    return make


@pytest.fixture
def weights(tmp_path):
    """Make a checkpoint with class names only."""

    def make(*names):
        content = {"model": {"x": torch.ones(1)}} | ({"class_names": [*names]} if names else {})
        torch.save(content, tmp_path / "model.pth")
        return str(tmp_path / "model.pth")

    return make


def names_of(folder):
    categories = json.loads((folder / "train.json").read_text())["categories"]
    return [category["name"] for category in sorted(categories, key=lambda c: c["id"])]


def test_from_the_training_set(config, tmp_path):
    job = setup_job(training_flags(config()))
    assert job.num_classes() == (4, KEY)
    log = (tmp_path / "output/log.txt").read_text()
    assert f"{KEY} is not set: using 4, the number of classes of the dataset tiny_train." in log
    kept = yaml.safe_load((tmp_path / "output/config.yaml").read_text())
    assert kept["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 4
    assert job.build_model().roi_heads.num_classes == 4
    assert read_job(config()).num_classes() == (4, KEY)
    assert read_config(str(config())).MODEL.ROI_HEADS.NUM_CLASSES == 80  # detectron2's default


def test_retinanet(config):
    cfg = setup_job(training_flags(config(), "MODEL.META_ARCHITECTURE", "RetinaNet")).config
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (4, 80)


@pytest.mark.parametrize(
    "base, opts, number",
    [
        (None, (KEY, 80), 80),  # the default, but set
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 80}}", (), 80),
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 3}}", (), 3),
        (f"_BASE_: {ROOT}/configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml", (), 16),
        (
            "_BASE_: " + model_zoo.get_config_file("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml"),
            (),
            20,
        ),
    ],
)
def test_set_somewhere(config, base, opts, number):
    with pytest.raises(UserError, match=f"tiny_train has 4 classes, but {KEY} is {number}: set it"):
        setup_job(training_flags(config(base), *opts))
    assert setup_job(training_flags(config(base), *opts, KEY, 4)).num_classes() == (4, KEY)


def test_evaluation(config, weights, tiny_dataset, tmp_path):
    """From the checkpoint, else the training set, else the test set."""
    names = [*names_of(tiny_dataset), "elk"]
    job = setup_job(training_flags(config(weights=weights(*names)), eval_only=True))
    assert job.num_classes() == (5, KEY)
    assert "the number of classes of " in (tmp_path / "output/log.txt").read_text()
    no_train = ("DATASETS.TRAIN", "()")
    for opts in ((), no_train):
        job = setup_job(training_flags(config(weights=weights()), *opts, eval_only=True))
        assert job.num_classes() == (4, KEY)
    args = training_flags(config(weights=weights(*names)), KEY, 4, eval_only=True)
    with pytest.raises(UserError, match=f"model.pth has 5 classes, but {KEY} is 4: set it to 5"):
        setup_job(args)
    job = read_job(config(weights=weights(*names)), eval_only=True)
    assert job.num_classes() == (5, KEY)
    nowhere = ("DATASETS.TRAIN", "('nowhere',)", "DATASETS.TEST", "()")
    assert read_job(config(weights=weights()), nowhere, eval_only=True).num_classes() == (80, KEY)


def lazy_opts(quickstart, *opts):
    kept = [opt for opt in quickstart.lazy_opts if "num_classes" not in opt]
    return [*kept, *opts]


@pytest.mark.parametrize("value", ["null", "'???'"])
def test_lazy(quickstart, tmp_path, value):
    """Interpolations to the key keep working."""
    output = f"train.output_dir={tmp_path}"
    opts = lazy_opts(quickstart, f"model.roi_heads.num_classes={value}", output)
    job = setup_job(training_flags(quickstart.lazy, *opts))
    assert job.num_classes() == (4, "model.roi_heads.num_classes")
    heads = job.config.model.roi_heads
    assert (heads.box_predictor.num_classes, heads.mask_head.num_classes) == (4, 4)
    log = (tmp_path / "log.txt").read_text()
    assert "model.roi_heads.num_classes is not set: using 4, the number of classes of " in log
    assert read_job(tmp_path / "config.yaml").num_classes() == job.num_classes()
    assert instantiate(job.config.model).roi_heads.box_predictor.cls_score.out_features == 4


def test_lazy_keys_without_interpolation(quickstart, tmp_path):
    keys = [f"roi_heads.{part}num_classes" for part in ("", "box_predictor.", "mask_head.")]
    opts = [f"model.{key}=null" for key in keys]
    opts = lazy_opts(quickstart, *opts, f"train.output_dir={tmp_path}")
    model = setup_job(training_flags(quickstart.lazy, *opts)).config.model
    assert [OmegaConf.select(model, key) for key in keys] == [4, 4, 4]


@pytest.mark.parametrize(
    "config, keys, unset",
    [
        (
            "LVISv1-InstanceSegmentation/cascade_mask_rcnn_R_50_FPN_AGLU_gate_score_1x.py",
            ["roi_heads.num_classes", "roi_heads.box_predictors.2.num_classes"],
            "model.roi_heads.num_classes",
        ),
        (
            "LVISv1-InstanceSegmentation/fcos_R_50_FPN_AGLU_1x.py",
            ["num_classes", "head.num_classes"],
            None,
        ),
        (
            "LVISv1-InstanceSegmentation/retinanet_R_50_FPN_AGLU_gate_1x.py",
            ["num_classes", "head.num_classes"],
            None,
        ),
    ],
)
def test_lazy_architectures(tiny_dataset, config, keys, unset):
    """Also within L(apa_det.modeling.injected)."""
    path = f"{ROOT}/configs/{config}"
    job = read_job(path)
    unset = unset or next(
        k
        for k in ("model.num_classes", "model.model.num_classes")
        if OmegaConf.select(job.config, k) is not None
    )
    opts = [
        f"dataloader.lvis_format={tiny_datasets(tiny_dataset)}",
        "dataloader.train.dataset.names=tiny_train",
        f"{unset}=null",
    ]
    job = read_job(path, opts)
    assert job.num_classes() == (4, unset)
    model = OmegaConf.select(job.config, unset.rpartition("model")[0] + "model")
    assert [OmegaConf.select(model, key) for key in keys] == [4] * len(keys)


def test_lazy_without_any_source(quickstart, tmp_path):
    opts = lazy_opts(quickstart, "model.roi_heads.num_classes=null")
    opts += ["dataloader.train.dataset.names=nowhere", "dataloader.test.dataset.names=nowhere"]
    job = read_job(quickstart.lazy, opts)
    with pytest.raises(UserError, match="model.roi_heads.num_classes is not set, and neither"):
        job.build_model()
