import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from apa_det.engine import StrictCheckpointer
from apa_det.errors import UserError


class Model(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.heads = nn.Module()
        self.heads.box = nn.Module()
        self.heads.box.score = nn.Linear(4, num_classes)


@pytest.fixture
def save(tmp_path):
    def write(state):
        torch.save({"model": state}, tmp_path / "file.pth")
        return str(tmp_path / "file.pth")

    return write


def without(state, *parts):
    return {k: v for k, v in state.items() if not any(part in k for part in parts)}


def test_whole_model(save):
    source, model = Model(), Model()
    StrictCheckpointer(model).load(save(source.state_dict()))
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_another_class_count(save):
    path = save(Model(80).state_dict())
    with pytest.raises(
        UserError,
        match=r"file.pth .*heads.box.score.weight has shape \(80, 4\) in the file, \(3, 4\)"
        r" in the model \(and 1 more differ\).*start a new training from it \(weights\)",
    ):
        StrictCheckpointer(Model()).load(path)


def test_missing_parameters(save):
    path = save(without(Model().state_dict(), "running_var", "score"))
    with pytest.raises(UserError, match="3 of the model's parameters .*running_var, heads.box"):
        StrictCheckpointer(Model()).load(path)


def test_unknown_parameters(save):
    state = Model().state_dict()
    path = save({**state, "backbone.stem.2.lambda_param": torch.ones(1)})
    with pytest.raises(UserError, match="1 parameters of the file are not in the model.*lambda"):
        StrictCheckpointer(Model()).load(path)


def test_ignored_tensors(save):
    """Additional heads, and buffers that evaluation does not use."""
    state = without(Model().state_dict(), "num_batches_tracked")
    state |= {"heads.mask.weight": torch.ones(1), "pixel_mean": torch.ones(3)}
    state |= {"heads.box.fed_loss_cls_weights": torch.ones(3)}
    StrictCheckpointer(Model()).load(save(state))


def test_parameter_with_two_names(save):
    model = Model()
    model.heads.again = model.heads.box
    StrictCheckpointer(model).load(save(Model().state_dict()))


def test_start_of_training_lists_initialized_parameters(save, caplog):
    source = Model(80)
    model = Model()
    before = copy.deepcopy(model.state_dict())
    path = save(without(source.state_dict(), "stem.1"))
    with caplog.at_level("WARNING"):
        StrictCheckpointer(model, strict=False).load(path)
    (record,) = caplog.records
    assert "heads.box.score.weight ((80, 4) in the file, (3, 4) in the model)" in record.message
    assert "backbone.stem.1.{bias, running_mean, running_var, weight}" in record.message
    assert torch.equal(model.backbone.stem[0].weight, source.backbone.stem[0].weight)
    assert torch.equal(model.heads.box.score.weight, before["heads.box.score.weight"])


def test_model_zoo_files(tmp_path):
    """Pickled arrays: of a whole detector, and of a backbone, with names matched by suffix."""
    source, model = Model(), Model()
    arrays = {name: value.numpy() for name, value in source.state_dict().items()}
    zoo = {"model": {**arrays, "pixel_mean": np.ones(3)}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "detector.pkl").write_bytes(pickle.dumps(zoo))
    StrictCheckpointer(model).load(str(tmp_path / "detector.pkl"))
    assert torch.equal(model.heads.box.score.weight, source.heads.box.score.weight)

    backbone = {k.removeprefix("backbone."): v for k, v in arrays.items() if "backbone" in k}
    zoo = {"model": backbone, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(zoo))
    model = Model()
    StrictCheckpointer(model, strict=False).load(str(tmp_path / "R-50.pkl"))
    assert torch.equal(model.backbone.stem[0].weight, source.backbone.stem[0].weight)
    with pytest.raises(UserError, match="heads.box.score.weight"):
        StrictCheckpointer(Model()).load(str(tmp_path / "R-50.pkl"))


def test_file_of_another_model(save):
    with pytest.raises(UserError, match="fills no parameter of the model"):
        StrictCheckpointer(Model(), strict=False).load(save({"conv1.weight": torch.ones(1)}))
