"""Detections of a model's classes as those of a dataset."""

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apa_det.errors import UserError
from apa_det.evaluation.by_name import (
    ByNameEvaluator,
    model_classes,
    select_classes,
    set_model_classes,
)


def detections(classes):
    result = Instances((10, 10))
    result.pred_classes = torch.tensor(classes, dtype=torch.long)
    result.scores = torch.arange(len(classes)) / 10
    result.pred_boxes = Boxes(torch.arange(4.0 * len(classes)).reshape(-1, 4))
    result.pred_masks_rle = [{"counts": i} for i in range(len(classes))]
    return result


@given(
    st.lists(st.integers(0, 4), max_size=8),
    st.permutations([0, 1, 2, -1, -1]),
)
def test_select_classes(classes, indices):
    before = detections(classes)
    selected = select_classes(before, indices)
    kept = [i for i, c in enumerate(classes) if indices[c] >= 0]
    assert selected.pred_classes.tolist() == [indices[classes[i]] for i in kept]
    assert selected.scores.tolist() == before.scores[kept].tolist()
    assert torch.equal(selected.pred_boxes.tensor, before.pred_boxes.tensor[kept])
    assert [mask["counts"] for mask in selected.pred_masks_rle] == kept
    assert before.pred_classes.tolist() == classes


def test_class_without_name():
    with pytest.raises(UserError, match="predicts class 3 .*has only 3 class names"):
        select_classes(detections([0, 3]), [0, 1, 2])


def test_other_outputs_are_kept():
    class Recorder(DatasetEvaluator):
        def process(self, inputs, outputs):
            self.outputs = outputs

    recorder = Recorder()
    outputs = [{"sem_seg": 1}, {"instances": detections([1]), "sem_seg": 2}]
    ByNameEvaluator(recorder, [1, 0]).process([{}, {}], outputs)
    assert recorder.outputs[0] is outputs[0] and recorder.outputs[1]["sem_seg"] == 2
    assert recorder.outputs[1]["instances"].pred_classes.tolist() == [0]


def test_names_of_a_wrapped_model():
    model = nn.Linear(1, 1)
    assert model_classes(model) is None
    set_model_classes(model, ("a", "b"))
    assert model_classes(nn.Sequential(nn.Sequential(model))) == ["a", "b"]
    set_model_classes(model, None)
    assert model_classes(model) is None
