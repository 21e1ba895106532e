"""apa_det.setup in projects, with detectron2's own predictor, visualizer and checkpointer."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

import apa_det
from apa_det.checkpoint import reverse
from apa_det.data import ensure_metadata
from apa_det.errors import UserError


@pytest.fixture
def cfg(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    cfg.merge_from_file(str(tiny_config))
    return cfg


def renamed(cfg, name, entries):
    """Return the config with datasets of other names: the catalog keeps those of other tests."""
    cfg = cfg.clone()
    cfg.DATASETS.LVIS_FORMAT = [[f"{name}_{s}", file, root] for s, file, root in entries]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{name}_train",), (f"{name}_val",)
    return cfg


def files(folder):
    return [(split, f"{folder}/{split}.json", str(folder)) for split in ("train", "val")]


def names_in(file):
    categories = json.loads(file.read_text())["categories"]
    return [c["name"] for c in sorted(categories, key=lambda c: c["id"])]


def test_predictor_and_visualizer(cfg, tiny_dataset, tmp_path):
    """With a published detector's file, which detectron2's checkpointer cannot read."""
    cfg = renamed(cfg, "setup", files(tiny_dataset))
    cfg.MODEL.BACKBONE.NAME = "build_apa_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.APA.GATE = 8, "se"
    torch.manual_seed(0)
    expected = build_model(cfg).state_dict()
    state = reverse(expected).state
    file = tmp_path / "published.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 24}}, file)
    cfg.MODEL.WEIGHTS = str(file)
    with pytest.raises(ValueError, match="Unsupported type"):
        DefaultPredictor(cfg)
    cfg.freeze()
    apa_det.setup(cfg)
    assert cfg.is_frozen() and cfg.MODEL.WEIGHTS != str(file)
    predictor = DefaultPredictor(cfg)
    found = predictor.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    instances = predictor(np.full((64, 64, 3), 90, np.uint8))["instances"]
    names = names_in(tiny_dataset / "val.json")
    assert predictor.metadata.thing_classes == names and len(instances)
    drawn = Visualizer(np.zeros((64, 64, 3), np.uint8), predictor.metadata)
    labels = drawn.draw_instance_predictions(instances).get_image()
    assert labels.shape == (64, 64, 3)
    ensure_metadata("setup_val")  # adds the counts to the names
    assert predictor.metadata.class_image_count
    again = cfg.MODEL.WEIGHTS
    apa_det.setup(cfg)  # a second call changes nothing
    assert cfg.MODEL.WEIGHTS == again


def test_classifier_weights(cfg, tmp_path):
    """As a torchvision ResNet: detectron2 matches its names with any backbone."""
    import torchvision

    file = tmp_path / "resnet18.pth"
    classifier = torchvision.models.resnet18(weights=None)
    torch.save(classifier.state_dict(), file)
    cfg.MODEL.WEIGHTS = str(file)
    apa_det.setup(cfg)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    bottom_up = model.backbone.bottom_up
    assert torch.equal(bottom_up.stem.conv1.weight, classifier.conv1.weight)
    assert torch.equal(bottom_up.res5[1].conv2.weight, classifier.layer4[1].conv2.weight)
    assert torch.equal(bottom_up.res3[0].shortcut.weight, classifier.layer2[0].downsample[0].weight)


def test_class_names_of_the_checkpoint_and_order(cfg, tiny_dataset, tmp_path):
    names = ["one", "two", "three", "four"]
    file = tmp_path / "model.pth"
    torch.save({"model": {"backbone.x": torch.zeros(1)}, "class_names": names}, file)
    gone = renamed(cfg, "setup_gone", [(s, f"/none/{s}.json", "/none") for s in ("train", "val")])
    gone.MODEL.WEIGHTS = str(file)
    apa_det.setup(gone)
    assert MetadataCatalog.get("setup_gone_val").thing_classes == names
    assert gone.MODEL.WEIGHTS == str(file)

    other = json.loads((tiny_dataset / "val.json").read_text())
    for category in other["categories"]:
        category["id"] = 10 - category["id"]
    for annotation in other["annotations"]:
        annotation["category_id"] = 10 - annotation["category_id"]
    for image in other["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [10 - i for i in image.get(key, ())]
    shutil.copy(tiny_dataset / "train.json", tmp_path)
    (tmp_path / "val.json").write_text(json.dumps(other))
    entries = [(s, str(tmp_path / f"{s}.json"), str(tiny_dataset)) for s in ("train", "val")]
    apa_det.setup(renamed(cfg, "setup_order", entries))
    train = names_in(tmp_path / "train.json")
    assert names_in(tmp_path / "val.json") == train[::-1]
    assert MetadataCatalog.get("setup_order_val").thing_classes == train


@pytest.mark.parametrize("setup_first", [True, False])
def test_log_goes_where_that_of_detectron2_goes(cfg, tmp_path, setup_first):
    if setup_first:
        apa_det.setup(cfg)
    setup_logger(str(tmp_path), distributed_rank=0)
    apa_det.setup(cfg)
    logging.getLogger("apa_det.test").info("a message of apa_det")
    log = (tmp_path / "log.txt").read_text()
    assert log.count("a message of apa_det") == 1 and "apa_det.test" in log


def test_lazy_config(tiny_dataset, tmp_path):
    (tmp_path / "config.py").write_text(
        f"dataloader = dict(lvis_format=[['setup_lazy', '{tiny_dataset}/val.json', "
        f"'{tiny_dataset}']], train=dict(dataset=dict(names='setup_lazy')))\n"
        "train = dict(init_checkpoint='')"
    )
    apa_det.setup(LazyConfig.load(str(tmp_path / "config.py")))
    names = names_in(tiny_dataset / "val.json")
    assert MetadataCatalog.get("setup_lazy").thing_classes == names


def test_a_name_that_is_taken(cfg, tiny_dataset):
    taken = renamed(cfg, "setup_taken", files(tiny_dataset))
    apa_det.setup(taken)
    taken.DATASETS.LVIS_FORMAT[0][2] = "/elsewhere"
    with pytest.raises(UserError, match='"setup_taken_train" is registered already'):
        apa_det.setup(taken)
