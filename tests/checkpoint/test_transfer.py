"""Match the rows of heads by class name: directly and at the start of training."""

import json
import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from apa_det.checkpoint import (
    ClassTransfer,
    load_checkpoint,
    match_classes,
    read_class_names,
    transfer_rows,
)
from apa_det.engine import StrictCheckpointer
from apa_det.errors import UserError
from apa_det.modeling.box_predictor import APAFastRCNNOutputLayers

TRANSFORM = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
OLD = ["cat", "traffic_light", "dog", "Fire-Hydrant", "bus"]
NEW = ["zebra", "dog", "traffic light", "fire hydrant"]


def test_matches():
    assert match_classes(NEW, OLD) == [None, 2, 1, 3]
    assert match_classes(["a", "A"], ["A", "a"]) == [1, 0]  # identical names come first
    assert match_classes(["a", "b c"], ["a", "a", "b_c", "B c"]) == [None, None]  # ambiguous


def score(module, num_classes, **kwargs):
    arguments = {"box2box_transform": TRANSFORM, "num_classes": num_classes, **kwargs}
    return module(ShapeSpec(channels=6), **arguments)


class Detector(nn.Module):
    def __init__(self, num_classes, predictors, masks=True):
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = predictors
        if masks:
            self.roi_heads.mask_head = nn.Module()
            self.roi_heads.mask_head.predictor = nn.Conv2d(3, num_classes, 1)


def detector(num_classes, **kwargs):
    arguments = {"class_score": "apa", "score_per_class": True, **kwargs}
    ranges = {"score_lambda_range": (0.2, 1.0), "score_kappa_range": (0.5, 1.5)}
    made = score(APAFastRCNNOutputLayers, num_classes, **ranges, **arguments)
    return Detector(num_classes, made)


def assert_mapped(old, new, start, matches, per_class=1, dim=0):
    for i, match in enumerate(matches):
        rows = slice(i * per_class, (i + 1) * per_class)
        of = slice((match or 0) * per_class, ((match or 0) + 1) * per_class)
        expected = start.narrow(dim, rows.start, per_class)
        if match is not None:
            expected = old.narrow(dim, of.start, per_class)
        assert torch.equal(new.narrow(dim, rows.start, per_class), expected)


@pytest.mark.parametrize("predictor", ["linear", "normed", "wrapped_cauchy"])
def test_rows_of_an_apa_head(predictor):
    """Scores, λ and κ, box deltas and masks are matched per class; the rest is copied."""
    learned = {"predictor_learn_temperature": True} if predictor == "normed" else {}
    old, new = (detector(n, predictor=predictor, **learned) for n in (5, 4))
    matches = match_classes(NEW, OLD)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    rows = transfer_rows(old.state_dict(), new.state_dict(), matches, 5)
    new.load_state_dict(rows.state)
    names = dict(new.named_parameters()).keys()
    assert set(rows.tensors) == {n for n in names if not n.endswith("temperature")}
    for name, value in new.state_dict().items():
        if name.endswith("temperature"):
            assert torch.equal(value, old.state_dict()[name])
            continue
        per_class, dim = 4 if "bbox_pred" in name else 1, 1 if ".score." in name else 0
        assert_mapped(old.state_dict()[name], value, before[name], matches, per_class, dim)


def test_background_of_each_predictor_of_a_cascade():
    predictors = [
        nn.ModuleList(score(FastRCNNOutputLayers, n, cls_agnostic_bbox_reg=True) for _ in range(3))
        for n in (5, 4)
    ]
    old, new = Detector(5, predictors[0], masks=False), Detector(4, predictors[1], masks=False)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    matches = match_classes(NEW, OLD)
    new.load_state_dict(transfer_rows(old.state_dict(), new.state_dict(), matches, 5).state)
    for name, value in new.state_dict().items():
        theirs = old.state_dict()[name]
        if "bbox_pred" in name:  # class-agnostic
            assert torch.equal(value, theirs)
        else:
            assert_mapped(theirs[:-1], value[:-1], before[name][:-1], matches)
            assert torch.equal(value[-1], theirs[-1])


def test_anchors_of_a_one_stage_head():
    """Nine anchors, each with a block of all classes."""
    old, new = nn.Conv2d(2, 9 * 5, 3), nn.Conv2d(2, 9 * 4, 3)
    name = "head.cls_score.weight"
    states = [{name: module.weight} for module in (old, new)]
    matches = match_classes(NEW, OLD)
    ours = transfer_rows(*states, matches, 5).state[name].unflatten(0, (9, 4))
    theirs, start = old.weight.unflatten(0, (9, 5)), new.weight.unflatten(0, (9, 4))
    with torch.no_grad():
        assert_mapped(theirs, ours, start, matches, dim=1)


def test_rows_of_no_class():
    """Rows of a grouped softmax that belong to no class need equal numbers."""
    name = "roi_heads.box_predictor.cls_score.bias"
    matches = match_classes(NEW, OLD)
    new = {name: -torch.arange(4.0 + 6)}
    found = transfer_rows({name: torch.arange(5.0 + 6)}, new, matches, 5).state[name]
    assert found.tolist() == [0, 2, 1, 3, 5, 6, 7, 8, 9, 10]
    found = transfer_rows({name: torch.arange(5.0 + 1)}, new, matches, 5).state[name]
    assert found.tolist() == [0, 2, 1, 3, -4, -5, -6, -7, -8, -9]
    counted = {"roi_heads.box_predictor.class_loss.groups": torch.zeros(4)}
    assert transfer_rows(counted, counted, matches, 5).state == {}


def test_same_classes_in_another_order():
    """Rows follow their classes even though no shape differs."""
    old, new = detector(3), detector(3)
    matches = match_classes(["c", "a", "b"], ["a", "b", "c"])
    state = transfer_rows(old.state_dict(), new.state_dict(), matches, 3).state
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(state[name], old.state_dict()[name][[2, 0, 1]])


def test_wrong_number_of_source_classes():
    old, new = detector(5), detector(4)
    with pytest.raises(UserError, match=r"cls_score.weight has 5 rows, .* the 7 classes of"):
        transfer_rows(old.state_dict(), new.state_dict(), [None] * 4, 7)


def test_names_of_classes(tmp_path):
    assert read_class_names("checkpoint", {"class_names": OLD}) == OLD
    (tmp_path / "list.json").write_text(json.dumps(OLD))
    assert read_class_names(str(tmp_path / "list.json"), {}) == OLD
    categories = [{"id": 9, "name": "b"}, {"id": 2, "name": "a"}]
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": categories}))
    assert read_class_names(str(tmp_path / "lvis.json"), {}) == ["a", "b"]
    assert read_class_names("coco_2017_val", {})[0] == "person"
    (tmp_path / "no.json").write_text('{"a": 1}')
    for source, message in (
        ("checkpoint", "has no class_names, which apa_det saves in training"),
        ("coco", "MODEL.TRANSFER_FROM must be checkpoint, a registered dataset or .* got 'coco'"),
        (str(tmp_path / "no.json"), "has no class names. It must be a JSON list"),
    ):
        with pytest.raises(UserError, match=message):
            read_class_names(source, {})
    with pytest.raises(FileNotFoundError):
        read_class_names(str(tmp_path / "none.json"), {})


def test_start_of_training(tmp_path, caplog):
    old, new = detector(5), detector(4)
    torch.manual_seed(0)
    StrictCheckpointer(old, str(tmp_path), class_names=OLD).save("old")
    file = str(tmp_path / "old.pth")
    assert load_checkpoint(file)["class_names"] == OLD
    matches = match_classes(NEW, OLD)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    transfer = ClassTransfer("checkpoint", NEW, ["r", "f", "f", "c"])
    with caplog.at_level(logging.INFO, "apa_det"):
        StrictCheckpointer(new, strict=False, class_names=NEW, transfer=transfer).load(file)
    name = "roi_heads.box_predictor.cls_score.weight"
    assert_mapped(old.state_dict()[name], new.state_dict()[name], before[name], matches)
    assert "3 of 4 classes match one of the checkpoint's 5: 1 exactly, 2 except" in caplog.text
    assert "1 classes match none of the checkpoint's" in caplog.text
    assert "1 rare: zebra" in caplog.text

    # The same classes in another order: by name
    turned = detector(5)
    StrictCheckpointer(turned, strict=False, class_names=OLD[::-1]).load(file)
    assert torch.equal(turned.state_dict()[name][:5], old.state_dict()[name][:5].flip(0))
    # Other classes of the same number: a warning
    caplog.clear()
    StrictCheckpointer(detector(5), strict=False, class_names=["a", *OLD[1:]]).load(file)
    assert "differ from those of the training set" in caplog.text
    # Resuming, also in another order: an error
    with pytest.raises(UserError, match="old.pth: it was trained with .*class 0 is '.*' in the "):
        StrictCheckpointer(detector(5), class_names=OLD[::-1]).load(file)
    # Reinitialized parameters
    again = detector(5)
    start = again.roi_heads.box_predictor.cls_score.weight.clone()
    StrictCheckpointer(again, strict=False, reinitialized=["*cls_score.*"]).load(file)
    assert torch.equal(again.roi_heads.box_predictor.cls_score.weight, start)
    assert torch.equal(
        again.roi_heads.box_predictor.bbox_pred.weight,
        old.state_dict()["roi_heads.box_predictor.bbox_pred.weight"],
    )
    # detectron2's own checkpointer loads the file
    other = detector(5)
    DetectionCheckpointer(other).load(file)
    assert torch.equal(other.state_dict()[name], old.state_dict()[name])


def test_no_class_in_common(tmp_path):
    StrictCheckpointer(detector(5), str(tmp_path), class_names=OLD).save("old")
    transfer = ClassTransfer("checkpoint", ["elk", "emu"])
    with pytest.raises(
        ValueError, match=r"old.pth: none of its classes \(cat, .* training set \(elk, emu, "
    ):
        StrictCheckpointer(detector(2), strict=False, transfer=transfer).load(
            str(tmp_path / "old.pth")
        )


def test_file_without_heads(tmp_path):
    torch.save({"model": {"backbone.x": torch.ones(1)}, "class_names": OLD}, tmp_path / "b.pth")
    transfer = ClassTransfer("checkpoint", NEW)
    with pytest.raises(ValueError, match="b.pth: none of its layers is a class score"):
        StrictCheckpointer(detector(4), strict=False, transfer=transfer).load(
            str(tmp_path / "b.pth")
        )
