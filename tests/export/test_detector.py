"""The exported function against detectron2's models."""

import copy

import pytest
import torch
from detectron2.layers import paste_masks_in_image
from torch import nn

from apa_det.export import Detector


@pytest.mark.parametrize("kind", ["quickstart", "published", "retinanet"])
def test_same_detections_as_the_model(detectors, images, kind):
    model = detectors(kind)
    for image in images:
        with torch.no_grad():
            expected = model([{"image": image}])[0]["instances"]
        outputs = Detector(model)(image)
        assert len(expected) == len(outputs["scores"]) > 0
        assert torch.equal(outputs["boxes"], expected.pred_boxes.tensor)
        assert torch.equal(outputs["classes"], expected.pred_classes)
        assert torch.equal(outputs["scores"], expected.scores)
        assert ("masks" in outputs) == expected.has("pred_masks")
        if "masks" in outputs:
            masks, boxes = outputs["masks"][:, 0], expected.pred_boxes
            pasted = paste_masks_in_image(masks, boxes, image.shape[1:])
            assert torch.equal(pasted, expected.pred_masks)


def test_empty_boxes_are_dropped(detectors, images):
    model, image = detectors("quickstart"), images[0]
    inference = model.inference

    def with_an_empty_box(*args, **kwargs):
        (instances,) = inference(*args, **kwargs)
        instances.pred_boxes.tensor[0] = torch.tensor([-9.0, 5, -4, 9])
        return [instances]

    expected = Detector(model)(image)
    model.inference = with_an_empty_box
    try:
        outputs = Detector(model)(image)
    finally:
        del model.inference
    assert torch.equal(outputs["boxes"], expected["boxes"][1:])


def test_errors(detectors):
    with pytest.raises(ValueError, match="model.eval"):
        Detector(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear cannot be exported"):
        Detector(nn.Linear(2, 2).eval())
    model = copy.deepcopy(detectors("quickstart"))
    model.roi_heads.keypoint_on = True
    with pytest.raises(ValueError, match="Keypoints cannot be exported"):
        Detector(model)
