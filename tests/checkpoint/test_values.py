"""Weights that a model of floats cannot use, names that do not print, and any other contents."""

import copy
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from apa_det.checkpoint import (
    ClassTransfer,
    adapt,
    average_checkpoints,
    convert,
    load_checkpoint,
    read_class_names,
)
from apa_det.engine import StrictCheckpointer
from apa_det.errors import UserError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(4, 3)
        self.backbone.register_buffer("mask", torch.tensor([0.0, -math.inf]))


WEIGHT = "roi_heads.box_predictor.cls_score.weight"
VARIANCE = "backbone.stem.1.running_var"
NAN, INF = math.nan, math.inf


@pytest.fixture
def save(tmp_path):
    def save(content, name="file.pth"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save


def bad(value):
    tensor = torch.zeros(3, 4)
    tensor[2, 3] = value
    return tensor


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        (WEIGHT, torch.ones(3, 4, dtype=torch.int64), "is of int64, but the model's is of float32"),
        (WEIGHT, torch.ones(3, 4, dtype=torch.uint8), "is of uint8"),
        (WEIGHT, torch.ones(3, 4, dtype=torch.bool), "is of bool"),
        (WEIGHT, torch.ones(3, 4, dtype=torch.complex64), "is of complex64"),
        (WEIGHT, bad(NAN), "has NaN or infinite values"),
        (WEIGHT, bad(INF), "has NaN or infinite values"),
        (WEIGHT, bad(-INF), "has NaN or infinite values"),
        (WEIGHT, bad(NAN).half(), "has NaN or infinite values"),
        (WEIGHT, torch.full((3, 4), 1e300, dtype=torch.float64), "has NaN or infinite values"),
        (VARIANCE, torch.full((4,), NAN), "has NaN or infinite values"),
        ("backbone.mask", torch.tensor([0, 1]), "is of int64"),
    ],
)
def test_no_floats(name, tensor, message, save):
    model = Model()
    before = copy.deepcopy(model.state_dict())
    content = {"model": {**before, name: tensor}}
    path = save(content)
    for strict in (True, False):
        with pytest.raises(UserError, match=f"file.pth: {name} {message}"):
            StrictCheckpointer(model, strict=strict).load(path)
    for function in (convert, adapt):
        with pytest.raises(UserError, match=f"{name} {message}"):
            function(content, model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_floats_of_other_sizes(save):
    expected = Model().state_dict()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in expected.items()}
        model = Model()
        StrictCheckpointer(model).load(save({"model": state}))
        assert torch.allclose(model.state_dict()[WEIGHT], expected[WEIGHT], atol=1e-2)
        assert convert({"model": state}, model).state.keys() == expected.keys()


def test_weights_matched_by_heuristics(tmp_path):
    """The final names are known only after the match."""
    arrays = {"stem.0.weight": np.ones((4, 3, 1, 1), "i8"), "stem.0.bias": np.zeros(4, "f4")}
    content = {"model": arrays, "__author__": "x", "matching_heuristics": True}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content))
    checkpointer = StrictCheckpointer(Model(), strict=False)
    with pytest.raises(UserError, match="file.pkl: backbone.stem.0.weight is of int64"):
        checkpointer.load(str(tmp_path / "file.pkl"))


def test_class_rows_of_another_kind(save):
    state = {**Model().state_dict(), WEIGHT: torch.ones(5, 4, dtype=torch.int32)}
    transfer = ClassTransfer("checkpoint", ["a", "b", "c"])
    path = save({"model": state, "class_names": ["a", "b", "c", "d", "e"]})
    with pytest.raises(UserError, match=f"{WEIGHT} is of int32"):
        StrictCheckpointer(Model(), strict=False, transfer=transfer).load(path)


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        *((WEIGHT, torch.ones(3, 4, dtype=t), "is of ") for t in (torch.int64, torch.bool)),
        ("backbone.mask", torch.ones(2, dtype=torch.complex128), "is of complex128: save it"),
        (WEIGHT, bad(INF), "has NaN or infinite values"),
        (VARIANCE, bad(NAN), "has NaN or infinite values"),
        ("backbone.mask", torch.tensor([0, NAN]), "has NaN or infinite values"),
        ("backbone.mask", torch.tensor([0, 1]), None),
        ("backbone.mask", torch.tensor([0, -INF]), None),
    ],
)
def test_without_a_model(name, tensor, message, save):
    content = {"model": {**Model().state_dict(), name: tensor}}
    path = save(content)
    if message is None:
        assert torch.equal(convert(content).state[name], tensor)
        assert torch.equal(average_checkpoints([path, path])["model"][name], tensor)
        return
    with pytest.raises(UserError, match=f"{name} {message}"):
        convert(content)
    with pytest.raises(UserError, match=f"file.pth: {name} {message}"):
        average_checkpoints([path])


def test_nan_without_a_model(save):
    state = {**Model().state_dict(), WEIGHT: bad(NAN)}
    with pytest.raises(UserError, match=f"{WEIGHT} has NaN"):
        convert({"model": state})
    good = {"model": Model().state_dict()}  # its mask is infinite
    assert convert(good).state
    average_checkpoints([save(good), save(good, "b.pth")])
    with pytest.raises(UserError, match=f"b.pth: {WEIGHT} has NaN"):
        average_checkpoints([save(good), save({"model": state}, "b.pth")])
    with pytest.raises(UserError, match=f"b.pth: {WEIGHT} has NaN"):
        average_checkpoints([save({"model": state, "ema": state}, "b.pth")], ema=True)


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a.\x1b[31mweight", r"a.\\x1b\[31mweight"),
        ("a\nb", r"a\\nb"),
        ("x" * 600, r"x{77}\.\.\."),
    ],
)
def test_tensor_names_print(name, shown, save):
    path = save({"model": {**Model().state_dict(), name: torch.ones(1)}})
    with pytest.raises(UserError, match=f"file.pth: .* invalid name, {shown}: "):
        StrictCheckpointer(Model(), strict=False).load(path)
    with pytest.raises(UserError, match=f"invalid name, {shown}: "):
        convert(load_checkpoint(path))


def test_class_names_print(save, caplog):
    names = ["\x1b[31mred", "x" * 10**5]
    path = save({"model": Model().state_dict(), "class_names": ["a", "b", "c"]})
    transfer = ClassTransfer("checkpoint", ["a", *names], groups="rrc")
    with caplog.at_level(logging.INFO):
        StrictCheckpointer(Model(), strict=False, transfer=transfer).load(path)
    assert r"rare: \x1b[31mred" in caplog.text and "\x1b" not in caplog.text
    assert len(caplog.text) < 10_000
    path = save({"model": Model().state_dict(), "class_names": [*names, "c"]})
    transfer = ClassTransfer("checkpoint", ["d", "e", "f"])
    with pytest.raises(UserError, match=r"none of its classes \(\\x1b\[31mred, xxx"):
        StrictCheckpointer(Model(), strict=False, transfer=transfer).load(path)


def test_dropped_classes_print(tmp_path, caplog):
    data = b"\x80\x02}X\x01\x00\x00\x00ac\x1b[31mx\n" + b"y" * 1500 + b"\n)Rs."
    (tmp_path / "file.pth").write_bytes(data)
    with caplog.at_level(logging.INFO):
        assert load_checkpoint(str(tmp_path / "file.pth")) == {}
    (record,) = caplog.records
    assert r"\x1b[31mx.yyy" in record.getMessage()
    assert record.getMessage().isprintable() and len(record.getMessage()) < 1200


@pytest.mark.parametrize("names", [[], 3, "abc", [1, 2], {"a": 1}, torch.ones(3), ["a", None]])
def test_class_names_are_strings(names, save):
    content = {"model": Model().state_dict(), "class_names": names}
    path = save(content)
    with pytest.raises(UserError, match="class_names are not a list of strings"):
        read_class_names("checkpoint", content)
    with pytest.raises(UserError, match="file.pth: its class_names are not"):
        StrictCheckpointer(Model(), strict=False, class_names=["a", "b", "c"]).load(path)
    with pytest.raises(UserError, match="file.pth: its class_names are not"):
        average_checkpoints([path])


NAMES = st.sampled_from(
    ["model", "state_dict", "ema", "blobs", "class_names", "__author__", "matching_heuristics"]
    + ["module." + WEIGHT, WEIGHT, VARIANCE, "backbone.layer1.0.conv1.weight", "conv1_w", "\x1b"]
    + ["roi_head.mask_head.conv_logits.tempearture", "ema_" + WEIGHT, "stem.conv1.weight"]
)
TENSORS = st.builds(
    lambda size, dtype, value: torch.full(size, 1).to(dtype) * value,
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([1, 0, NAN]),
)
CONTENTS = st.dictionaries(
    NAMES,
    st.recursive(
        TENSORS | st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(NAMES, values, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=CONTENTS, known=st.booleans())
def test_any_contents(content, known, tmp_path_factory):
    """Each function returns, or raises one UserError that prints."""
    path = tmp_path_factory.mktemp("contents") / "file.pth"
    if known:
        content = {**content, "model": {**Model().state_dict(), **content}}
    torch.save(content, path)
    path = str(path)
    transfer = ClassTransfer("checkpoint", ["a", "b"])
    for use in (
        lambda: convert(load_checkpoint(path)).table(),
        lambda: convert(load_checkpoint(path), Model()).check(),
        lambda: average_checkpoints([path, path]),
        lambda: average_checkpoints([path], ema=True),
        lambda: StrictCheckpointer(Model()).load(path),
        lambda: StrictCheckpointer(Model(), strict=False, averaged=True).load(path),
        lambda: StrictCheckpointer(Model(), strict=False, transfer=transfer).load(path),
    ):
        try:
            use()
        except UserError as error:
            assert str(error).isprintable()
