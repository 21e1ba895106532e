"""The predictor against detectron2's DefaultPredictor."""

import numpy as np
import pytest
import torch
from detectron2.data.transforms import AugmentationList
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from apa_det.data.image_files import read_image
from apa_det.demo import ClassInfo, Predictor, build_predictor
from apa_det.engine import read_job
from apa_det.errors import MissingFileError, UserError
from apa_det.evaluation import FrequencyGroups


def check_same(instances, expected):
    assert len(instances) == len(expected) > 0
    for name, value in expected.get_fields().items():
        value = value.tensor if isinstance(value, Boxes) else value
        ours = instances.get(name)
        torch.testing.assert_close(ours.tensor if isinstance(ours, Boxes) else ours, value)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("mask_on", [True, False])
def test_same_as_detectron2(detector, image_format, mask_on, tmp_path):
    opts = [*detector.opts, "INPUT.FORMAT", image_format, "MODEL.MASK_ON", mask_on]
    predictor = build_predictor(read_job(detector.yaml, opts), "0")
    theirs = DefaultPredictor(detector.config(*opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0))
    image = read_image(detector.images[0], "RGB")
    instances = predictor(image)
    check_same(instances, theirs(image[:, :, ::-1])["instances"])
    assert instances.has("pred_masks") == mask_on


def test_lazy_config(detector):
    image = read_image(detector.images[0], "RGB")
    ours = build_predictor(read_job(detector.lazy, detector.lazy_opts), "0")
    theirs = build_predictor(read_job(detector.yaml, detector.opts), "0")
    check_same(ours(image), theirs(image))
    assert ours.classes.names == theirs.classes.names
    assert ours.classes.group_indices.tolist() == theirs.classes.group_indices.tolist()


def test_needs_no_training_set(detector, tmp_path):
    """The model was trained with the federated loss, and its training set is missing."""
    heads = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    weights = str(tmp_path / "model.pth")
    opts = [*detector.opts, *heads, "MODEL.WEIGHTS", weights]
    state = build_model(detector.config(*opts)).state_dict()
    state["roi_heads.box_predictor.fed_loss_cls_weights"] = torch.ones(4)
    torch.save({"model": state}, weights)
    opts += ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "DATASETS.TRAIN", ("nowhere",)]
    predictor = build_predictor(read_job(detector.yaml, opts), "0.5")
    assert predictor.classes.groups.names == ("r", "c", "f")


class FourScores(nn.Module):
    """Detects classes 0, 0, 1 and 2 with scores of 0.1 to 0.4, in ascending order."""

    test_score_thresh = 0.9

    def forward(self, inputs):
        instances = Instances((inputs[0]["height"], inputs[0]["width"]))
        instances.pred_boxes = Boxes(torch.rand(4, 4))
        instances.scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
        instances.pred_classes = torch.tensor([0, 0, 1, 2])
        return [{"instances": instances}]


def test_thresholds_of_classes():
    indices = np.array([0, 1, 2])
    classes = ClassInfo(("a", "b", "c"), np.arange(3), FrequencyGroups.lvis(), indices)
    model = FourScores()
    predictor = Predictor(model, AugmentationList([]), "RGB", classes, np.array([0.15, 0.35, 0.4]))
    instances = predictor(np.zeros((8, 8, 3), np.uint8))
    assert instances.pred_classes.tolist() == [2, 0]  # in descending order of scores
    assert instances.scores.tolist() == pytest.approx([0.4, 0.2])
    assert model.test_score_thresh == 0.15


def test_not_a_detector():
    class Segmentation(nn.Module):
        def forward(self, inputs):
            return [{"sem_seg": None}]

    classes = ClassInfo(("a",), np.arange(1), FrequencyGroups.lvis(), np.array([0]))
    predictor = Predictor(Segmentation(), AugmentationList([]), "RGB", classes, np.zeros(1))
    with pytest.raises(UserError, match="not a detector: it returns sem_seg, not instances"):
        predictor(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], "does not fit the model"),
        (["MODEL.FPN.OUT_CHANNELS", 32], "does not fit the model"),
    ],
)
def test_errors(detector, opts, message):
    with pytest.raises(UserError, match=message):
        build_predictor(read_job(detector.yaml, [*detector.opts, *opts]), "0.5")


def test_missing_config():
    with pytest.raises(MissingFileError, match="no config file nowhere.py"):
        build_predictor(read_job("nowhere.py", []), "0.5")
